//! Metrics that are looked up when somebody asks for them.

use metrics::gauge;

use super::Api;
use crate::store::Standing;
use crate::telemetry::metrics as names;

/// With more databases, none has metrics of its own.
const DATABASES_MAX: usize = 500;

/// Sets every gauge to what the node says now.
pub(super) fn observe(api: &dyn Api) {
    let overview = api.overview();
    gauge!(names::IS_PRIMARY).set(f64::from(u8::from(overview.is_primary)));
    gauge!(names::QUORUM).set(f64::from(u8::from(overview.no_quorum.is_none())));
    gauge!(names::READY).set(f64::from(u8::from(overview.ready.is_ok())));
    let details = api.details();
    gauge!(names::BUILD_INFO, "version" => details.version).set(1.0);
    gauge!(names::UPTIME).set(details.uptime.as_secs_f64());
    if let Some(left) = details.certificate_left {
        gauge!(names::CERTIFICATE_LEFT).set(left.as_secs_f64());
    }
    let copying = overview.copying.map_or((0, 0), |copying| (copying.bytes, copying.total_bytes));
    gauge!(names::COPY_BYTES).set(copying.0 as f64);
    gauge!(names::COPY_TOTAL_BYTES).set(copying.1 as f64);
    gauge!(names::TERM).set(overview.term as f64);
    gauge!(names::APPLIED_INDEX).set(overview.index.get() as f64);
    gauge!(names::DURABLE_INDEX).set(overview.durable_index.get() as f64);
    gauge!(names::DISCARDED).set(api.discarded() as f64);
    let databases = api.databases();
    gauge!(names::DATABASES).set(databases.len() as f64);
    gauge!(names::ATTACHED).set(databases.iter().filter(|db| db.attached).count() as f64);
    gauge!(names::FAILED).set(databases.iter().filter(|db| db.failure.is_some()).count() as f64);
    gauge!(names::HELD).set(databases.iter().filter(|db| !db.held_by.is_empty()).count() as f64);
    gauge!(names::DATABASE_BYTES).set(databases.iter().map(|db| db.size_bytes).sum::<u64>() as f64);
    if databases.len() <= DATABASES_MAX {
        for db in &databases {
            let name = db.name.to_string();
            gauge!(names::DB_TXID, "db" => name.clone()).set(db.pos.txid_or_zero() as f64);
            gauge!(names::DB_BYTES, "db" => name).set(db.size_bytes as f64);
        }
    }
    let members = api.members();
    let following = members.iter().filter(|member| member.healthy && member.standing == Standing::Follows);
    gauge!(names::SUBSCRIBERS).set(following.count() as f64);
    let own = members.iter().find(|member| member.name == overview.name).and_then(|member| member.lag);
    gauge!(names::LAG_SECONDS).set(own.filter(|_| !overview.is_primary).unwrap_or_default().as_secs_f64());
    for role in ["voter", "replica"] {
        for healthy in [true, false] {
            let count = members.iter().filter(|m| m.role.to_string() == role && m.healthy == healthy).count();
            gauge!(names::MEMBERS, "role" => role, "healthy" => healthy.to_string()).set(count as f64);
        }
    }
    for member in members {
        let node = member.name.to_string();
        gauge!(names::MEMBER_LAG_ENTRIES, "node" => node.clone()).set(member.lag_entries as f64);
        if let Some(lag) = member.lag {
            gauge!(names::MEMBER_LAG_SECONDS, "node" => node).set(lag.as_secs_f64());
        }
    }
}

//! The user that the application runs as.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statfs::{FUSE_SUPER_MAGIC, statfs};

use super::Finding;
use crate::config::{Partial, Settings};
use crate::node::run_as::RunAs;
use crate::store::{Layout, recorded_root};
use crate::types::Attributes;

const CHECK: &str = "application user";

pub(super) fn examine(settings: &Partial) -> Vec<Finding> {
    let name = settings.exec.user.clone().unwrap_or_default();
    let user = match RunAs::find(&name) {
        Ok(None) => return Vec::new(),
        Ok(Some(user)) => user,
        Err(why) => return vec![Finding::failure(CHECK, why, "name a user of this machine in --exec-user")],
    };
    let Some(mount) = &settings.mount else { return Vec::new() };
    let shown = match mount_root(settings, mount) {
        Ok(shown) => shown,
        Err(why) => {
            return vec![Finding::failure(CHECK, why, "restore the file, or empty --data and join again")];
        }
    };
    if user.may_write_in(shown) {
        return vec![Finding::ok(CHECK, format!("{name} may make databases at {}", mount.display()))];
    }
    let Attributes { uid, gid, mode } = shown;
    let seen =
        format!("{name} cannot make databases at {}: it is of {uid}:{gid}, mode {mode:o}", mount.display());
    let remedy = format!(
        "once, on the primary: chown {name} {}; or, on this node only: --mount-uid {name}",
        mount.display()
    );
    vec![Finding::warning(CHECK, seen, remedy)]
}

/// The mount's directory as applications see it, or will.
fn mount_root(settings: &Partial, mount: &Path) -> Result<Attributes, String> {
    if statfs(mount).is_ok_and(|asked| asked.filesystem_type() == FUSE_SUPER_MAGIC)
        && let Ok(metadata) = std::fs::metadata(mount)
    {
        return Ok(Attributes::new(metadata.uid(), metadata.gid(), metadata.mode()));
    }
    let layout = settings.data.clone().map(Layout::new);
    let recorded = recorded_root(layout.as_ref()).map_err(|error| error.to_string())?;
    // Whatever else is wrong with the settings is told elsewhere.
    let forced = Settings::resolve(settings.clone(), "host").map(|settings| settings.forced);
    Ok(forced.unwrap_or_default().over(recorded, true))
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;
    use crate::config::PartialExec;

    fn settings(dir: &Path, user: &str) -> Partial {
        let exec = PartialExec { user: Some(user.into()), ..PartialExec::default() };
        Partial { mount: Some(dir.join("mnt")), data: Some(dir.join("data")), exec, ..Partial::default() }
    }

    #[test]
    fn a_user_who_could_not_write_is_told_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        assert!(examine(&settings(dir.path(), "")).is_empty());
        let unknown = examine(&settings(dir.path(), "no such user"));
        assert_eq!(unknown[0].health, Health::Failure);
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let found = examine(&settings(dir.path(), "12345"));
        assert_eq!(found[0].health, Health::Warning);
        assert!(found[0].remedy.contains("chown 12345"), "{found:?}");
        let forced = Partial { mount_uid: "12345".parse().ok(), ..settings(dir.path(), "12345") };
        assert_eq!(examine(&forced)[0].health, Health::Ok);
        std::fs::create_dir(dir.path().join("data")).unwrap();
        std::fs::write(dir.path().join("data/names"), "skein-names 1\nr 12345 0 755 0 4 /\n").unwrap();
        assert_eq!(examine(&settings(dir.path(), "12345"))[0].health, Health::Ok);
    }
}

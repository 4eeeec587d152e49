//! What a collector of traces gets to know of a commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;

use crate::harness::{Node, Settings, eventually, free_address, needs_skein, sql};

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let spans = resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
        self.0.lock().unwrap().extend(spans);
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(span: &Span, key: &str) -> Option<String> {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

#[test]
fn a_commit_is_one_trace_from_its_capture_to_the_last_node_that_applies_it() {
    if !needs_skein() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (collector, address) = (Collector::default(), free_address());
    let service = TraceServiceServer::new(collector.clone());
    runtime.spawn(tonic::transport::Server::builder().add_service(service).serve(address));

    let dir = tempfile::tempdir().unwrap();
    let env = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let traced = vec![
        env("SKEIN_TRACES_ENDPOINT", &format!("http://{address}")),
        env("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let mut primary = Node::new(dir.path(), Settings { env: traced.clone(), ..Settings::primary("n1") });
    primary.must_start();
    let mut replica =
        Node::new(dir.path(), Settings { env: traced, ..Settings::replica("r1", primary.listen) });
    replica.must_start();
    let db = sql::open(&primary.path("app.db"));
    db.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t(v)").unwrap();
    db.execute_batch("INSERT INTO t VALUES(1)").unwrap();
    let (txid, _) = eventually("the node names the commit", || primary.pos("app.db"));

    let (trace, spans) = eventually("the collector hears of the commit on both nodes", || {
        let all = collector.0.lock().unwrap().clone();
        let of_commit = |span: &&Span| text(span, "skein.txid").as_ref() == Some(&txid);
        let root = all.iter().filter(of_commit).find(|span| span.name == "commit")?;
        let mut spans: BTreeMap<Vec<u8>, Span> = BTreeMap::new();
        spans.extend(
            all.iter().filter(|s| s.trace_id == root.trace_id).map(|s| (s.span_id.clone(), s.clone())),
        );
        let applied = spans.values().filter(|span| span.name == "apply").count();
        (applied == 2).then_some((root.clone(), spans))
    });
    let names: BTreeSet<_> = spans.values().map(|span| span.name.as_str()).collect();
    assert_eq!(names, BTreeSet::from(["commit", "capture", "propose", "append", "quorum", "apply"]));
    assert_eq!(text(&trace, "skein.db").as_deref(), Some("app.db"));
    for span in spans.values().filter(|span| span.name != "commit") {
        assert_eq!(span.parent_span_id, trace.span_id, "{} belongs to the commit", span.name);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
    }
    let own = spans.values().filter(|span| text(span, "skein.index").is_none());
    for span in own {
        let within = trace.start_time_unix_nano..=trace.end_time_unix_nano;
        assert!(within.contains(&span.start_time_unix_nano) && within.contains(&span.end_time_unix_nano));
    }
    // A collector that is gone costs traces, never commits.
    drop(runtime);
    db.execute_batch("INSERT INTO t VALUES(2)").unwrap();
    assert_eq!(replica.terminate().and_then(|status| status.code()), Some(0));
    assert_eq!(primary.terminate().and_then(|status| status.code()), Some(0));
}

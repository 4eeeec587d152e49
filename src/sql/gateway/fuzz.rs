//! Targets for [`crate::fuzz`]: what clients of SQL over HTTP send.

use bytes::Bytes;

use super::document::{Document, Kind, baton_of};
use crate::sql::hrana::PipelineRequest;

/// A request; the first byte says which of Hrana's it is.
pub fn request(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    let _ = baton_of(body);
    let kind = match kind % 4 {
        0 => Kind::Pipeline,
        1 => Kind::Cursor,
        2 => Kind::Execute,
        _ => Kind::Batch,
    };
    let Ok(document) = Document::read(kind, Bytes::copy_from_slice(body)) else { return };
    let Ok(passed_on) = document.with_baton(Some("n1.0")) else { return };
    assert_eq!(baton_of(&passed_on).as_deref(), Some("n1.0"));
    if kind != Kind::Cursor {
        assert!(
            serde_json::from_slice::<PipelineRequest>(&passed_on).is_ok(),
            "what is passed on can be read"
        );
    }
}

/// Valid requests.
pub fn requests() -> Vec<Vec<u8>> {
    let stmt = r#"{"sql":"SELECT ?","args":[{"type":"integer","value":"7"},{"type":"blob","base64":"AAE"},
        {"type":"float","value":0.5},{"type":"null"},{"type":"text","value":"x"}],"want_rows":true,"replication_index":"9"}"#;
    let steps = format!(
        r#"{{"steps":[{{"stmt":{stmt}}},{{"condition":{{"type":"not","cond":{{"type":"ok","step":0}}}},"stmt":{stmt}}}]}}"#
    );
    let pipeline = format!(
        r#"{{"baton":"n1.0","requests":[{{"type":"execute","stmt":{stmt}}},{{"type":"batch","batch":{steps}}},
        {{"type":"store_sql","sql_id":1,"sql":"SELECT 1"}},{{"type":"describe","sql":"SELECT 1"}},{{"type":"close"}}]}}"#
    );
    let of = |kind: u8, text: &str| [&[kind], text.as_bytes()].concat();
    vec![
        of(0, &pipeline),
        of(1, &format!(r#"{{"baton":null,"batch":{steps}}}"#)),
        of(2, &format!(r#"{{"stmt":{stmt}}}"#)),
        of(3, &format!(r#"{{"batch":{steps}}}"#)),
    ]
}

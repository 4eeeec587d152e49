use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use rusqlite::ToSql;
use rusqlite::types::{ToSqlOutput, ValueRef};
use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// Clients send blobs with and without padding; they are answered with it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A value of SQLite as Hrana writes it: an integer is a text, because JavaScript's numbers have 53 bits.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// NULL.
    Null,
    /// A 64-bit integer.
    Integer(i64),
    /// A floating-point number; JavaScript's clients send every number so, also 7.
    Float(f64),
    /// A text.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

impl Value {
    /// The value of a row.
    ///
    /// # Errors
    /// Where a text is not UTF-8, which JSON cannot carry.
    pub fn of(value: ValueRef<'_>) -> Result<Self, std::str::Utf8Error> {
        Ok(match value {
            ValueRef::Null => Value::Null,
            ValueRef::Integer(number) => Value::Integer(number),
            ValueRef::Real(number) => Value::Float(number),
            ValueRef::Text(bytes) => Value::Text(std::str::from_utf8(bytes)?.to_owned()),
            ValueRef::Blob(bytes) => Value::Blob(bytes.to_owned()),
        })
    }

    /// About how many bytes it takes in an answer.
    pub fn weight(&self) -> usize {
        const TAGS: usize = 32;
        TAGS + match self {
            Value::Null => 0,
            Value::Integer(_) | Value::Float(_) => 20,
            Value::Text(text) => text.len(),
            Value::Blob(bytes) => bytes.len().div_ceil(3) * 4,
        }
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Value::Null => ValueRef::Null,
            Value::Integer(number) => ValueRef::Integer(*number),
            Value::Float(number) => ValueRef::Real(*number),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            Value::Null => map.serialize_entry("type", "null")?,
            Value::Integer(number) => {
                map.serialize_entry("type", "integer")?;
                map.serialize_entry("value", &number.to_string())?;
            }
            Value::Float(number) => {
                map.serialize_entry("type", "float")?;
                map.serialize_entry("value", &FloatText(*number))?;
            }
            Value::Text(text) => {
                map.serialize_entry("type", "text")?;
                map.serialize_entry("value", text)?;
            }
            Value::Blob(bytes) => {
                map.serialize_entry("type", "blob")?;
                map.serialize_entry("base64", &BASE64.encode(bytes))?;
            }
        }
        map.end()
    }
}

/// SQLite has infinities, and JSON has no word for them; parsers read a number that is too large as one.
struct FloatText(f64);

impl Serialize for FloatText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() {
            return serializer.serialize_f64(self.0);
        }
        let text = if self.0 > 0.0 { "1e999" } else { "-1e999" };
        let raw = RawValue::from_string(text.to_owned()).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

/// All fields of all kinds; which of them have to be there depends on `type`.
#[derive(Deserialize)]
struct Fields {
    r#type: String,
    #[serde(default)]
    value: Option<serde_json::Value>,
    #[serde(default)]
    base64: Option<String>,
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Fields { r#type: kind, value, base64 } = Fields::deserialize(deserializer)?;
        let bad = |why: &str| D::Error::custom(format!("a value of type {kind:?} {why}"));
        match (kind.as_str(), value, base64) {
            ("null", _, _) => Ok(Value::Null),
            ("integer", Some(serde_json::Value::String(text)), _) => {
                text.parse().map(Value::Integer).map_err(|_| bad("is no 64-bit integer"))
            }
            ("integer", Some(serde_json::Value::Number(number)), _) => {
                number.as_i64().map(Value::Integer).ok_or_else(|| bad("is no 64-bit integer"))
            }
            ("float", Some(serde_json::Value::Number(number)), _) => {
                number.as_f64().map(Value::Float).ok_or_else(|| bad("is no number"))
            }
            ("text", Some(serde_json::Value::String(text)), _) => Ok(Value::Text(text)),
            ("blob", _, Some(text)) => BASE64.decode(text).map(Value::Blob).map_err(|_| bad("is not base64")),
            ("integer" | "float" | "text", _, _) => Err(bad("has no fitting field `value`")),
            ("blob", _, None) => Err(bad("has no field `base64`")),
            _ => Err(bad("does not exist: null, integer, float, text, blob")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_both_ways() {
        for (value, json) in [
            (Value::Null, r#"{"type":"null"}"#),
            (Value::Integer(i64::MIN), r#"{"type":"integer","value":"-9223372036854775808"}"#),
            (Value::Float(0.5), r#"{"type":"float","value":0.5}"#),
            (Value::Text("a\"ä\0".into()), "{\"type\":\"text\",\"value\":\"a\\\"ä\\u0000\"}"),
            (Value::Blob(vec![0, 255]), r#"{"type":"blob","base64":"AP8="}"#),
        ] {
            assert_eq!(serde_json::to_string(&value).unwrap(), json);
            assert_eq!(serde_json::from_str::<Value>(json).unwrap(), value);
        }
        assert_eq!(
            serde_json::to_string(&Value::Float(f64::INFINITY)).unwrap(),
            r#"{"type":"float","value":1e999}"#
        );
        let unpadded: Value = serde_json::from_str(r#"{"type":"blob","base64":"AP8"}"#).unwrap();
        assert_eq!(unpadded, Value::Blob(vec![0, 255]));
        let number: Value = serde_json::from_str(r#"{"type":"float","value":7}"#).unwrap();
        assert_eq!(number, Value::Float(7.0));
    }

    #[test]
    fn what_is_no_value_is_refused_with_the_reason() {
        for (json, why) in [
            (r#"{"type":"integer","value":"9223372036854775808"}"#, "64-bit"),
            (r#"{"type":"integer"}"#, "`value`"),
            (r#"{"type":"blob","base64":"*"}"#, "base64"),
            (r#"{"type":"date","value":"x"}"#, "does not exist"),
            (r#"{"type":"text","value":5}"#, "fitting"),
        ] {
            let error = serde_json::from_str::<Value>(json).unwrap_err().to_string();
            assert!(error.contains(why), "{json}: {error}");
        }
    }
}

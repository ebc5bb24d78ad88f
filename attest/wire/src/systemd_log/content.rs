//! `content` of a record: a few known fields are kept, everything else is passed over as it is read. A tree of what a hostile log puts
//! there would take many times the log's own bytes.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The fields that logs are read from; empty where they are missing or of another kind.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// `string`: systemd's text.
    pub(crate) string: String,
    /// `eventType`: systemd's name of it.
    pub(crate) event_type: String,
    /// `event_type`: the firmware's type, a name or a number.
    pub(crate) kind: Scalar,
    /// `event_data`: the firmware's data.
    pub(crate) event_data: String,
}

/// A text, a number, or something else.
#[derive(Debug, Default)]
pub(crate) enum Scalar {
    Text(String),
    Number(u64),
    #[default]
    Other,
}

impl Scalar {
    fn text(self) -> String {
        if let Self::Text(text) = self { text } else { String::new() }
    }
}

/// Reads any value; what is neither text, number nor object is passed over.
struct Any<T>(fn(Scalar) -> T);

impl<'de, T: FromObject<'de>> Visitor<'de> for Any<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<T, E> {
        Ok((self.0)(Scalar::Text(text.to_owned())))
    }

    fn visit_string<E>(self, text: String) -> Result<T, E> {
        Ok((self.0)(Scalar::Text(text)))
    }

    fn visit_u64<E>(self, number: u64) -> Result<T, E> {
        Ok((self.0)(Scalar::Number(number)))
    }

    fn visit_i64<E>(self, _: i64) -> Result<T, E> {
        Ok((self.0)(Scalar::Other))
    }

    fn visit_f64<E>(self, _: f64) -> Result<T, E> {
        Ok((self.0)(Scalar::Other))
    }

    fn visit_bool<E>(self, _: bool) -> Result<T, E> {
        Ok((self.0)(Scalar::Other))
    }

    fn visit_unit<E>(self) -> Result<T, E> {
        Ok((self.0)(Scalar::Other))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<T, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok((self.0)(Scalar::Other))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
        T::from_object(fields)
    }
}

/// What becomes of an object.
trait FromObject<'de>: Sized {
    fn from_object<A: MapAccess<'de>>(fields: A) -> Result<Self, A::Error>;
}

impl<'de> FromObject<'de> for Scalar {
    fn from_object<A: MapAccess<'de>>(mut fields: A) -> Result<Self, A::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self::Other)
    }
}

impl<'de> FromObject<'de> for Content {
    fn from_object<A: MapAccess<'de>>(mut fields: A) -> Result<Self, A::Error> {
        let mut content = Self::default();
        while let Some(name) = fields.next_key::<String>()? {
            match name.as_str() {
                "string" => content.string = fields.next_value::<Scalar>()?.text(),
                "eventType" => content.event_type = fields.next_value::<Scalar>()?.text(),
                "event_type" => content.kind = fields.next_value()?,
                "event_data" => content.event_data = fields.next_value::<Scalar>()?.text(),
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(content)
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any(|scalar| scalar))
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any(|_| Self::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_fields_and_nothing_else() {
        let read = |text: &str| serde_json::from_str::<Content>(text).unwrap();
        let full = read(
            r#"{"string": "a", "x": [{"string": "b"}, 1.5, null], "eventType": "phase", "event_type": 4, "event_data": "00"}"#,
        );
        assert_eq!((full.string.as_str(), full.event_type.as_str(), full.event_data.as_str()), ("a", "phase", "00"));
        assert!(matches!(full.kind, Scalar::Number(4)));
        for none in
            ["[1, [2], {}]", "7", "-7", "1e9", "true", "null", "\"string\"", "{}", r#"{"string": {"string": "a"}}"#]
        {
            let content = read(none);
            assert!(content.string.is_empty() && matches!(content.kind, Scalar::Other), "{none}");
        }
        for other in ["-4", "4.5", "[4]", "{\"event_type\": 4}", "null", "false"] {
            assert!(matches!(read(&format!(r#"{{"event_type": {other}}}"#)).kind, Scalar::Other), "{other}");
        }
    }
}

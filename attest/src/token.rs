//! The text form of a join token: `csjoin1.` and base64url of its CBOR.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_wire::cbor;
use countersign_wire::trust::JoinToken;

/// Reads a token; white space around it is ignored.
///
/// # Errors
/// What is wrong with it, never its contents.
pub fn parse(text: &str) -> Result<JoinToken, String> {
    let encoded = text.trim().strip_prefix(JoinToken::PREFIX);
    let encoded = encoded.ok_or_else(|| format!("it does not start with {}", JoinToken::PREFIX))?;
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| "it is not base64url".to_owned())?;
    cbor::decode(&bytes).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let token = JoinToken { version: 1, url: "https://v:1".into(), trust: [1; 32], id: [2; 16], secret: [3; 32] };
        let text = format!("{}{}", JoinToken::PREFIX, URL_SAFE_NO_PAD.encode(cbor::encode(&token)));
        assert_eq!(parse(&format!(" {text}\n")).unwrap(), token);
        for end in 0..text.len() {
            assert!(parse(&text[..end]).is_err(), "{end}");
        }
        assert!(parse(&text.replace("csjoin1.", "csjoin2.")).is_err());
    }
}

//! Who carries an operator's request out.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Cli, read, runtime, state_dir};
use crate::admin::{self, Request};
use crate::out::Failure;
use crate::policy::sandbox::Trial;
use crate::service::Service;

/// On the state folder, whose permissions are the authority; with --remote over HTTPS.
pub(super) fn perform(cli: &Cli, request: Request) -> Result<Value, Failure> {
    let dir = state_dir(cli)?;
    let Some(url) = &cli.remote else {
        return runtime(false)?.block_on(async {
            let service = Service::open(&dir).await?.tried_in(Trial::own());
            Ok(admin::perform(&service, request, "command line").await?)
        });
    };
    let token = crate::keys::read_secret(&cli.token_file.clone().unwrap_or_else(|| dir.join("operator.token")))?;
    let ca = read(&cli.ca.clone().unwrap_or_else(|| dir.join("ca.pem")))?;
    remote(url, &String::from_utf8_lossy(&token), &ca, &request)
}

fn remote(url: &str, token: &str, ca: &[u8], request: &Request) -> Result<Value, Failure> {
    let unreachable = |e: &dyn std::fmt::Display| Failure {
        code: 21,
        error: format!("verifier at {url}: {e}"),
        hint: "check the address and that `verifier serve` runs there".into(),
        json: json!({"error": {"code": 21, "message": e.to_string()}}),
    };
    let ca = reqwest::Certificate::from_pem(ca).map_err(|e| unreachable(&e))?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::blocking::Client::builder()
        .tls_certs_only([ca])
        .https_only(true)
        .no_proxy()
        .timeout(Duration::from_secs(30))
        .build()
        .map_err(|e| unreachable(&e))?;
    let response = client
        .post(format!("{}/v1/admin", url.trim_end_matches('/')))
        .bearer_auth(token.trim())
        .json(request)
        .send()
        .map_err(|e| unreachable(&e))?;
    let good = response.status().is_success();
    let body: Value = response.json().map_err(|e| unreachable(&e))?;
    if good {
        return Ok(body);
    }
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    Err(Failure { code: 20, error: text("title"), hint: text("hint"), json: json!({"error": body}) })
}

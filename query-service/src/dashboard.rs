//! The web page, out of the binary: the files of `dashboard/`, as they are.
//!
//! The page names its files by a version, which is a digest of all of them: a browser keeps them for good, asks for none
//! twice, and gets all of a new release together.

use std::sync::LazyLock;

use axum::{
    Router,
    extract::Path,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use millrace_shared::problem::{NOT_FOUND, Problem};
use sha2::{Digest, Sha256};

/// Whatever comes into the page by data can neither run nor be sent elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// What stands in `index.html` for the version, and for the modules that are needed all the same: to be asked for at once,
/// not one after the other as they name each other.
const VERSION_HERE: &str = "VERSION";
const MODULES_HERE: &str = "<!-- MODULES -->";
const INDEX: &str = include_str!("../dashboard/index.html");

macro_rules! files {
    ($($name:literal)+) => { &[$(($name, include_bytes!(concat!("../dashboard/", $name)))),+] };
}

/// Everything that the page loads.
const FILES: &[(&str, &[u8])] = files! {
    "api.js" "app.js" "chart.js" "format.js" "icon.svg" "live.js" "parts.css" "parts.js" "stream.js" "style.css" "ui.js"
    "wheel.js" "lib/LICENSES.txt" "lib/hooks.js" "lib/htm.js" "lib/preact.js" "lib/uplot.css" "lib/uplot.js"
    "pages/account.js" "pages/accounts.js" "pages/overview.js" "pages/system.js"
    "pages/transfers.js"
};

static VERSION: LazyLock<String> = LazyLock::new(|| {
    let mut digest = Sha256::new_with_prefix(INDEX);
    for (name, content) in FILES {
        digest.update(name);
        digest.update(content);
    }
    digest.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
});

static PAGE: LazyLock<String> = LazyLock::new(|| {
    let modules = FILES.iter().filter(|(name, _)| name.ends_with(".js"));
    let links = modules.map(|(name, _)| format!("<link rel=\"modulepreload\" href=\"dashboard/VERSION/{name}\">"));
    INDEX.replace(MODULES_HERE, &links.collect::<Vec<_>>().join("\n    ")).replace(VERSION_HERE, &VERSION)
});

/// The page without its token: it asks for one where the API wants it.
pub fn routes() -> Router {
    Router::new().route("/", get(index)).route("/dashboard/{version}/{*name}", get(file))
}

async fn index(request: HeaderMap) -> Response {
    // Asked for anew each time, so that a new release is seen; mostly answered by "unchanged".
    answer(&request, "index.html", "no-cache", PAGE.as_str().into())
}

async fn file(Path((version, name)): Path<(String, String)>, request: HeaderMap) -> Response {
    let Some((_, content)) = FILES.iter().find(|(known, _)| *known == name) else {
        return Problem::new(&NOT_FOUND, "the page has no such file").into_response();
    };
    // Another instance's page, in the middle of an upgrade, gets what there is, but not for good.
    let keep = if version == *VERSION { "public, max-age=31536000, immutable" } else { "no-cache" };
    answer(&request, &name, keep, (*content).into())
}

fn answer(request: &HeaderMap, name: &str, keep: &'static str, content: axum::body::Bytes) -> Response {
    let tag = format!("\"{}\"", *VERSION);
    let mut headers = HeaderMap::new();
    for (header, value) in [
        (header::CACHE_CONTROL, keep),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(header, HeaderValue::from_static(value));
    }
    headers.extend(HeaderValue::from_str(&tag).ok().map(|tag| (header::ETAG, tag)));
    if crate::caching::has(request, &tag) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(name)));
    (headers, content).into_response()
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::PathBuf};

    use axum::{body, http::Request};
    use tower::ServiceExt;

    use super::*;

    async fn ask(path: &str, tag: Option<&str>) -> Response {
        let mut request = Request::get(path);
        if let Some(tag) = tag {
            request = request.header(header::IF_NONE_MATCH, tag);
        }
        routes().oneshot(request.body(body::Body::empty()).unwrap()).await.unwrap()
    }

    async fn text(response: Response) -> String {
        String::from_utf8(body::to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap()
    }

    /// What is quoted and ends like this in a text.
    fn quoted(text: &str, ending: &str) -> Vec<String> {
        text.split(['"', '\'']).filter(|part| part.ends_with(ending)).map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn everything_that_the_page_names_is_served() {
        let page = text(ask("/", None).await).await;
        let mut wanted: Vec<String> = [".js", ".css", ".svg"].iter().flat_map(|ending| quoted(&page, ending)).collect();
        assert!(wanted.iter().any(|path| path.ends_with("/app.js")), "{wanted:?}");
        let mut seen = BTreeSet::new();
        while let Some(path) = wanted.pop() {
            if !seen.insert(path.clone()) {
                continue;
            }
            let response = ask(&format!("/{path}"), None).await;
            assert_eq!(response.status(), 200, "{path}");
            let kept = response.headers()[header::CACHE_CONTROL].to_str().unwrap();
            assert!(kept.contains("immutable"), "{path}: {kept}");
            if path.ends_with(".js") {
                let folder = path.rsplit_once('/').unwrap().0.to_owned();
                let modules = quoted(&text(response).await, ".js").into_iter().filter(|name| name.starts_with('.'));
                wanted.extend(modules.map(|name| match name.strip_prefix("../") {
                    Some(name) => format!("{}/{name}", folder.rsplit_once('/').unwrap().0),
                    None => format!("{folder}/{}", name.trim_start_matches("./")),
                }));
            }
        }
        // The licences are for people.
        assert_eq!(seen.len(), FILES.len() - 1, "{seen:?}");
    }

    #[tokio::test]
    async fn a_browser_that_has_the_page_gets_no_body_and_another_release_is_not_kept() {
        let tag = ask("/", None).await.headers()[header::ETAG].to_str().unwrap().to_owned();
        assert_eq!(ask("/", Some(&tag)).await.status(), 304);
        assert_eq!(ask("/", Some("\"other\"")).await.status(), 200);
        let other = ask("/dashboard/another/app.js", None).await;
        assert_eq!(other.headers()[header::CACHE_CONTROL], "no-cache");
        assert_eq!(ask("/dashboard/another/none.js", None).await.status(), 404);
        assert_eq!(ask("/dashboard/another/../Cargo.toml", None).await.status(), 404);
    }

    #[test]
    fn no_file_of_the_folder_is_forgotten() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("dashboard");
        for part in ["", "lib", "pages"] {
            for entry in fs::read_dir(folder.join(part)).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned();
                let served = [".js", ".css", ".svg"].iter().any(|ending| name.ends_with(ending));
                assert!(!served || FILES.iter().any(|(known, _)| *known == name), "{name} is not served");
            }
        }
    }
}

//! What a request is, by its method and path alone.

use hyper::Method;

use crate::config::ProxySettings;

/// What is done with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// It goes to the application of this node unseen.
    Passthrough,
    /// It asks how this node is.
    Health,
    /// It asks whether the application of this node may write.
    WriteHealth,
    /// It is served by any node that has what the client wrote.
    Read,
    /// It is served by the primary.
    Write,
}

impl Kind {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Passthrough => "passthrough",
            Kind::Health | Kind::WriteHealth => "health",
            Kind::Read => "read",
            Kind::Write => "write",
        }
    }
}

/// Where a load balancer asks; the second as in LiteFS.
const HEALTH: [&str; 2] = ["/skein/health", "/litefs/health"];

/// Where it asks who may be sent writes.
const WRITE_HEALTH: &str = "/skein/health/write";

/// Paths that are treated otherwise than their method says.
#[derive(Debug)]
pub(super) struct Rules {
    passthrough: Vec<String>,
    always_forward: Vec<String>,
}

impl Rules {
    /// The rules of these settings.
    pub fn new(settings: &ProxySettings) -> Self {
        Self { passthrough: settings.passthrough.clone(), always_forward: settings.always_forward.clone() }
    }

    /// What a request is, in LiteFS's order.
    pub fn kind(&self, method: &Method, path: &str) -> Kind {
        let any = |patterns: &[String]| patterns.iter().any(|p| matches(p.as_bytes(), path.as_bytes()));
        if any(&self.passthrough) {
            Kind::Passthrough
        } else if method == Method::GET && HEALTH.contains(&path) {
            Kind::Health
        } else if method == Method::GET && path == WRITE_HEALTH {
            Kind::WriteHealth
        } else if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
            && !any(&self.always_forward)
        {
            Kind::Read
        } else {
            Kind::Write
        }
    }
}

/// Whether the whole `text` matches, `*` standing for any text, also with slashes in it.
///
/// Where a `*` was too short it takes one more byte, and only the last one can be: time is pattern times text.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut last_star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                last_star = Some((p, t));
                p += 1;
            }
            Some(byte) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((star, taken)) = last_star else { return false };
                last_star = Some((star, taken + 1));
                (p, t) = (star + 1, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_text() {
        for (pattern, text, expected) in [
            ("*.js", "/a/b.js", true),
            ("*.js", "/a/b.json", false),
            ("/assets/*", "/assets/", true),
            ("/assets/*", "/assets", false),
            ("/a*b*c", "/a-b-b-c", true),
            ("/a*b*c", "/a-b-c-d", false),
            ("/exact", "/exact", true),
            ("/exact", "/exactly", false),
            ("/a.c", "/abc", false),
            ("*", "", true),
            ("", "", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
        assert!(!matches("*a".repeat(50).as_bytes(), "a".repeat(49).as_bytes()));
        assert!(!matches("*a*a*a*b".as_bytes(), "a".repeat(20_000).as_bytes()), "and not slowly");
    }

    #[test]
    fn passthrough_comes_before_health_before_the_method() {
        let rules = Rules {
            passthrough: vec!["/static/*".into(), "/litefs/*".into()],
            always_forward: vec!["/logout".into()],
        };
        for (method, path, kind) in [
            (Method::POST, "/static/x", Kind::Passthrough),
            (Method::GET, "/litefs/health", Kind::Passthrough),
            (Method::GET, "/skein/health", Kind::Health),
            (Method::POST, "/skein/health", Kind::Write),
            (Method::GET, "/skein/health/write", Kind::WriteHealth),
            (Method::GET, "/logout", Kind::Write),
            (Method::GET, "/", Kind::Read),
            (Method::HEAD, "/", Kind::Read),
            (Method::OPTIONS, "/", Kind::Read),
            (Method::DELETE, "/", Kind::Write),
            (Method::PATCH, "/", Kind::Write),
        ] {
            assert_eq!(rules.kind(&method, path), kind, "{method} {path}");
        }
    }
}

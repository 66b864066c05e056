//! Lists in pages: what fits into a message, and a token that says where the next page begins.

use prost::Message;
use tonic::Status;

use super::status::invalid;

/// Rows of a page at most.
const MOST_ROWS: usize = 10_000;
/// Their bytes, so that the message stays below what clients take by default, which is 4 MiB.
const MOST_BYTES: usize = 3 << 20;

/// What is asked for.
pub(super) struct Page {
    rows: usize,
    after: Option<String>,
}

/// A page, and the token of the one that follows; empty after the last.
pub(super) struct Paged<M> {
    pub(super) rows: Vec<M>,
    pub(super) next: String,
}

impl Page {
    pub(super) fn new(size: u32, token: &str) -> Result<Self, Status> {
        let rows = if size == 0 { MOST_ROWS } else { MOST_ROWS.min(size as usize) };
        let after = match token {
            "" => None,
            token => Some(decode(token).ok_or_else(|| invalid("page_token", "it is none that a list has answered"))?),
        };
        Ok(Self { rows, after })
    }

    /// The key of the last row of the page before.
    pub(super) fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// Takes as many rows as there is room for. `all`: those that come after the page before, with their keys.
    pub(super) fn take<M: Message>(&self, all: impl Iterator<Item = (String, M)>) -> Paged<M> {
        let (mut rows, mut bytes, mut last) = (Vec::new(), 0, String::new());
        for (key, row) in all {
            bytes += row.encoded_len() + 4;
            if rows.len() == self.rows || (bytes > MOST_BYTES && !rows.is_empty()) {
                return Paged { rows, next: encode(&last) };
            }
            rows.push(row);
            last = key;
        }
        Paged { rows, next: String::new() }
    }
}

/// Opaque, so that nobody builds one.
fn encode(key: &str) -> String {
    key.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(token: &str) -> Option<String> {
    let digits = token.as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(byte).collect())?;
    String::from_utf8(bytes?).ok()
}

#[cfg(test)]
mod tests {
    use lb_proto::v1::Vip;

    use super::*;

    fn pages(size: u32, text_len: usize) -> Vec<usize> {
        let rows =
            || (0..25_000).map(|at| (format!("{at:05}"), Vip { problem: "x".repeat(text_len), ..Vip::default() }));
        let (mut token, mut lens, mut seen) = (String::new(), Vec::new(), 0);
        loop {
            let page = Page::new(size, &token).unwrap();
            let after = page.after().map(ToOwned::to_owned);
            let Paged { rows, next } =
                page.take(rows().filter(|(key, _)| after.as_ref().is_none_or(|after| key > after)));
            seen += rows.len();
            lens.push(rows.len());
            token = next;
            if token.is_empty() {
                assert_eq!(seen, 25_000, "each row once");
                return lens;
            }
        }
    }

    #[test]
    fn pages_hold_what_was_asked_for_and_fits() {
        assert_eq!(pages(10_000, 1), [10_000, 10_000, 5000]);
        assert_eq!(pages(0, 1), [10_000, 10_000, 5000]);
        assert_eq!(pages(12_500, 1), [10_000, 10_000, 5000]);
        assert!(pages(0, 1000).iter().all(|len| *len <= MOST_BYTES / 1000));
        for wrong in ["x", "zz", "ff", "-1"] {
            let refused = Page::new(1, wrong).err().unwrap();
            assert!(refused.message().contains("page_token"), "{wrong}");
        }
    }
}

//! Tasks that end with their owners.

use tokio::task::AbortHandle;

/// Ends a task when it is dropped.
pub(crate) struct AbortOnDrop(pub(crate) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

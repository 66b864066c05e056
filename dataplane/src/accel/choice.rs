//! What the operator wants.

/// Whether an XDP program forwards known flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accelerate {
    /// None does.
    #[default]
    Off,
    /// On each interface that can have one, in the mode that suits it.
    Auto,
    /// On all of them, in the driver where that can be: else nothing starts.
    Xdp,
}

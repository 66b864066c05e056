//! Large zeroed memory in huge pages. The flow table is read at random: with 4 KiB pages every lookup
//! would miss the TLB. A process that holds much memory in small pages also dies slowly (1 GiB: 25 to
//! 30 ms until waitpid returns, 3 ms with huge pages), and a dying owner's VIPs wait for that.

use std::{
    io,
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
};

/// Has the processor fetch a value that is about to be used, where there is an instruction for that: it goes on
/// meanwhile, and the value need not be there.
#[inline]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const LINE: usize = 64;
        for line in 0..size_of::<T>().div_ceil(LINE).min(4) {
            // SAFETY: a hint, which faults nowhere; and the address lies in the value.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ptr::from_ref(value).cast::<i8>().add(line * LINE)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// A type whose value may be all zero bytes, and is then [`Self::ZERO`].
pub trait Zeroed: Copy {
    /// The value of zeroed memory.
    const ZERO: Self;
}

/// A slice that starts zeroed and takes memory only where it is touched.
pub struct HugeSlice<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its memory alone, like a boxed slice.
unsafe impl<T: Send> Send for HugeSlice<T> {}

impl<T: Zeroed> HugeSlice<T> {
    /// Maps `len` zeroed elements.
    pub fn new(len: usize) -> io::Result<Self> {
        const { assert!(size_of::<T>() > 0 && align_of::<T>() <= 4096) };
        let bytes = len.checked_mul(size_of::<T>()).filter(|bytes| *bytes > 0);
        let bytes = bytes.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: a new private mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range is the mapping just made. Advice only: where huge pages are off it fails,
        // and small ones serve.
        unsafe { libc::madvise(start, bytes, libc::MADV_HUGEPAGE) };
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self { start, len })
    }
}

impl<T> Deref for HugeSlice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `start` maps `len` elements, aligned to a page, initialised to zero, which `T: Zeroed`
        // (required by `new`) allows; the borrow of self keeps the mapping.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for HugeSlice<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the exclusive borrow of self makes it the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for HugeSlice<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, unmapped once; `T: Copy`, so there is nothing to drop in it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len * size_of::<T>()) };
    }
}

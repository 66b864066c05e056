//! Large zeroed memory in huge pages. The flow table is read at random: with 4 KiB pages every lookup
//! would miss the TLB. A process that holds much memory in small pages also dies slowly (1 GiB: 25 to
//! 30 ms until waitpid returns, 3 ms with huge pages), and a dying owner's VIPs wait for that.

use std::{
    io,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
    sync::Arc,
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

/// A private anonymous mapping.
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: an address and a length; whoever reads or writes there says why that is sound.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping of `HugeSlice::new`, unmapped once: nobody refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// A slice that starts zeroed and takes memory where it is touched, or [`Fill`]ed.
pub struct HugeSlice<T> {
    mapping: Arc<Mapping>,
    len: usize,
    /// It owns them.
    elements: PhantomData<T>,
}

// SAFETY: it alone refers to the elements, like a boxed slice; a `Fill` of it has the kernel provide memory, and reads and
// writes nothing.
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
        Ok(Self { mapping: Arc::new(Mapping { start, bytes }), len, elements: PhantomData })
    }
}

impl<T> HugeSlice<T> {
    /// Provides its memory piece by piece, beside whoever uses it.
    pub fn fill(&self) -> Fill {
        Fill { mapping: self.mapping.clone(), next: 0 }
    }
}

/// Memory that is provided before it is touched: the first access to each huge page has the kernel find and clear it, which
/// takes up to some 10 ms on a virtual machine, and frames wait meanwhile.
pub struct Fill {
    mapping: Arc<Mapping>,
    next: usize,
}

/// A huge page (x86-64 and, with pages of 4 KiB, arm64).
const PIECE: usize = 2 << 20;
/// linux/mman.h, since Linux 5.14.
const MADV_POPULATE_WRITE: libc::c_int = 23;

impl Fill {
    /// Provides the next piece. Whether there are more; on kernels that cannot do it there are none.
    pub fn step(&mut self) -> io::Result<bool> {
        let len = PIECE.min(self.mapping.bytes - self.next);
        if len == 0 {
            return Ok(false);
        }
        // SAFETY: inside the mapping, which lives as long as `self.mapping`. The kernel provides pages there and changes
        // no byte that anybody can see.
        let outcome =
            unsafe { libc::madvise(self.mapping.start.as_ptr().add(self.next).cast(), len, MADV_POPULATE_WRITE) };
        self.next += len;
        match outcome {
            0 => Ok(self.next < self.mapping.bytes),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
                error => Err(error),
            },
        }
    }
}

impl<T> Deref for HugeSlice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds `len` elements, aligned to a page, initialised to zero, which `T: Zeroed`
        // (required by `new`) allows; the borrow of self keeps the mapping.
        unsafe { std::slice::from_raw_parts(self.mapping.start.as_ptr().cast(), self.len) }
    }
}

impl<T> DerefMut for HugeSlice<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the exclusive borrow of self makes it the only access.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start.as_ptr().cast(), self.len) }
    }
}

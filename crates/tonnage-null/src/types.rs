//! Pointers that C callers hand in, and result codes.

/// Where a C caller wants an answer; may be null.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Stores the answer unless the pointer is null.
    pub fn set(&self, value: T) {
        if !self.0.is_null() {
            // SAFETY: the CUDA interfaces oblige the caller to pass null or a valid place for one T; reads of C code
            // need no alignment guarantee from us, so the write makes none.
            unsafe { self.0.write_unaligned(value) }
        }
    }

    /// Stores an answer at the n-th place of an array.
    pub fn set_at(&self, n: usize, value: T) {
        if !self.0.is_null() {
            // SAFETY: as in `set`; the interface states that the caller's array has more than n places.
            unsafe { self.0.add(n).write_unaligned(value) }
        }
    }

    /// What the place holds, for arguments that are both in and out.
    pub fn get(&self) -> Option<T>
    where
        T: Copy,
    {
        // SAFETY: as in `set`; in-out arguments are initialised by the caller.
        (!self.0.is_null()).then(|| unsafe { self.0.read_unaligned() })
    }

    /// The n-th element of an array that the caller filled.
    pub fn get_at(&self, n: usize) -> Option<T>
    where
        T: Copy,
    {
        // SAFETY: as in `set_at`.
        (!self.0.is_null()).then(|| unsafe { self.0.add(n).read_unaligned() })
    }

    /// The place at an address, for structures whose type depends on the caller's version.
    pub fn at(address: usize) -> Out<T> {
        Out(address as *mut T)
    }

    /// True for a null pointer.
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// The pointer as a number.
    pub fn address(&self) -> usize {
        self.0 as usize
    }
}

/// A caller's zero-terminated string.
#[repr(transparent)]
pub struct Text(*const libc::c_char);

impl Text {
    /// The string; empty where null or not UTF-8.
    pub fn get(&self) -> &str {
        if self.0.is_null() {
            return "";
        }
        // SAFETY: the interfaces oblige the caller to pass null or a zero-terminated string that outlives the call.
        unsafe { std::ffi::CStr::from_ptr(self.0) }
            .to_str()
            .unwrap_or("")
    }
}

/// Copies a name with its terminating zero into a caller's buffer, cut to fit.
pub fn put_text(to: &Out<u8>, room: usize, text: &str) {
    if room == 0 || to.is_null() {
        return;
    }
    let n = text.len().min(room - 1);
    for (i, b) in text.bytes().take(n).enumerate() {
        to.set_at(i, b);
    }
    to.set_at(n, 0);
}

/// The word at an address: a field of a structure that a caller handed in.
pub fn word_at<T: Copy>(structure: usize, offset: usize) -> Option<T> {
    // SAFETY: called with structures whose layout the interface fixes, at offsets inside them.
    (structure != 0).then(|| unsafe { ((structure + offset) as *const T).read_unaligned() })
}

/// `cudaSuccess` and the other libraries' success.
pub const OK: i32 = 0;
/// `cudaErrorInvalidValue`
pub const INVALID_VALUE: i32 = 1;
/// `cudaErrorMemoryAllocation`
pub const OUT_OF_MEMORY: i32 = 2;
/// `cudaErrorNoDevice`
pub const NO_DEVICE: i32 = 100;
/// `cudaErrorInvalidDevice`
pub const INVALID_DEVICE: i32 = 101;
/// `cudaErrorNoKernelImageForDevice`
pub const NO_KERNEL_IMAGE: i32 = 209;
/// `cudaErrorInvalidResourceHandle`
pub const INVALID_HANDLE: i32 = 400;
/// `cudaErrorSymbolNotFound`, `CUDA_ERROR_NOT_FOUND`
pub const NOT_FOUND: i32 = 500;
/// `cudaErrorNotReady`
pub const NOT_READY: i32 = 600;
/// `cudaErrorNotSupported`
pub const NOT_SUPPORTED: i32 = 801;

/// Name and sentence of a code (CUDA Runtime API, cudaError); the sentences are the driver's, as programs search them.
pub fn error_text(code: i32) -> (&'static std::ffi::CStr, &'static std::ffi::CStr) {
    match code {
        OK => (c"cudaSuccess", c"no error"),
        INVALID_VALUE => (c"cudaErrorInvalidValue", c"invalid argument"),
        OUT_OF_MEMORY => (c"cudaErrorMemoryAllocation", c"out of memory"),
        3 => (c"cudaErrorInitializationError", c"initialization error"),
        4 => (c"cudaErrorCudartUnloading", c"driver shutting down"),
        NO_DEVICE => (c"cudaErrorNoDevice", c"no CUDA-capable device is detected"),
        INVALID_DEVICE => (c"cudaErrorInvalidDevice", c"invalid device ordinal"),
        NO_KERNEL_IMAGE => (
            c"cudaErrorNoKernelImageForDevice",
            c"no kernel image is available for execution on the device",
        ),
        INVALID_HANDLE => (
            c"cudaErrorInvalidResourceHandle",
            c"invalid resource handle",
        ),
        NOT_FOUND => (c"cudaErrorSymbolNotFound", c"named symbol not found"),
        NOT_READY => (c"cudaErrorNotReady", c"device not ready"),
        713 => (
            c"cudaErrorHostMemoryNotRegistered",
            c"pointer does not correspond to a registered memory region",
        ),
        900 => (
            c"cudaErrorStreamCaptureUnsupported",
            c"operation not permitted when stream is capturing",
        ),
        704 => (
            c"cudaErrorPeerAccessAlreadyEnabled",
            c"peer access is already enabled",
        ),
        NOT_SUPPORTED => (
            c"cudaErrorNotSupported",
            c"operation not supported (by tonnage's null CUDA device: see its messages)",
        ),
        _ => (c"cudaErrorUnknown", c"unknown error"),
    }
}

//! `cudaDeviceProp` in the layouts of CUDA 12 (`cudaGetDeviceProperties_v2`; the unsuffixed function of CUDA 12 fills a
//! prefix of it) and of CUDA 13 (`driver_types.h` of the wheels 12.1 and 13.0).

use crate::state::{state, uuid_bytes};
use crate::types::Out;

/// The properties that differ from zero, by the header's names.
macro_rules! fill {
    ($p:expr, $index:expr) => {{
        let s = state();
        let d = &s.all()[$index];
        let name = s.name($index);
        let n = name.len().min(255);
        $p.name[..n].copy_from_slice(&name.as_bytes()[..n]);
        $p.uuid = uuid_bytes($index);
        $p.totalGlobalMem = d.total_bytes as usize;
        $p.major = d.capability.0 as i32;
        $p.minor = d.capability.1 as i32;
        $p.multiProcessorCount = d.sms as i32;
        $p.warpSize = 32;
        $p.maxThreadsPerBlock = 1024;
        $p.maxThreadsDim = [1024, 1024, 64];
        $p.maxGridSize = [i32::MAX, 65535, 65535];
        $p.sharedMemPerBlock = 49152;
        $p.sharedMemPerBlockOptin = d.shared_per_block() as usize;
        $p.sharedMemPerMultiprocessor = d.shared_per_sm() as usize;
        $p.reservedSharedMemPerBlock = 1024;
        $p.regsPerBlock = 65536;
        $p.regsPerMultiprocessor = 65536;
        $p.maxThreadsPerMultiProcessor = d.threads_per_sm() as i32;
        $p.maxBlocksPerMultiProcessor = 32;
        $p.l2CacheSize = d.l2() as i32;
        $p.totalConstMem = 65536;
        $p.memPitch = i32::MAX as usize;
        $p.textureAlignment = 512;
        $p.texturePitchAlignment = 32;
        $p.surfaceAlignment = 512;
        $p.unifiedAddressing = 1;
        $p.managedMemory = 1;
        $p.concurrentManagedAccess = 1;
        $p.concurrentKernels = 1;
        $p.asyncEngineCount = 3;
        $p.memoryBusWidth = d.bus_bits() as i32;
        $p.canMapHostMemory = 1;
        $p.ECCEnabled = d.ecc() as i32;
        $p.memoryPoolsSupported = 1;
        $p.streamPrioritiesSupported = 1;
        $p.globalL1CacheSupported = 1;
        $p.localL1CacheSupported = 1;
        $p.cooperativeLaunch = 1;
        $p.pciBusID = $index as i32 + 1;
    }};
}

macro_rules! layout {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[allow(missing_docs)]
        #[derive(Clone, Copy)]
        pub struct $name { $(pub $field: $kind),* }

        impl $name {
            /// The properties of a device of the file.
            pub fn of(index: usize) -> $name {
                // SAFETY: a structure of numbers, for which zero is a value.
                let mut p: $name = unsafe { std::mem::zeroed() };
                fill!(p, index);
                p
            }
        }
    };
}

layout! {
    /// CUDA 12.
    Prop12 {
        name: [u8; 256], uuid: [u8; 16], luid: [u8; 8], luidDeviceNodeMask: u32, totalGlobalMem: usize,
        sharedMemPerBlock: usize, regsPerBlock: i32, warpSize: i32, memPitch: usize, maxThreadsPerBlock: i32,
        maxThreadsDim: [i32; 3], maxGridSize: [i32; 3], clockRate: i32, totalConstMem: usize, major: i32,
        minor: i32, textureAlignment: usize, texturePitchAlignment: usize, deviceOverlap: i32,
        multiProcessorCount: i32, kernelExecTimeoutEnabled: i32, integrated: i32, canMapHostMemory: i32,
        computeMode: i32, maxTexture1D: i32, maxTexture1DMipmap: i32, maxTexture1DLinear: i32,
        maxTexture2D: [i32; 2], maxTexture2DMipmap: [i32; 2], maxTexture2DLinear: [i32; 3],
        maxTexture2DGather: [i32; 2], maxTexture3D: [i32; 3], maxTexture3DAlt: [i32; 3], maxTextureCubemap: i32,
        maxTexture1DLayered: [i32; 2], maxTexture2DLayered: [i32; 3], maxTextureCubemapLayered: [i32; 2],
        maxSurface1D: i32, maxSurface2D: [i32; 2], maxSurface3D: [i32; 3], maxSurface1DLayered: [i32; 2],
        maxSurface2DLayered: [i32; 3], maxSurfaceCubemap: i32, maxSurfaceCubemapLayered: [i32; 2],
        surfaceAlignment: usize, concurrentKernels: i32, ECCEnabled: i32, pciBusID: i32, pciDeviceID: i32,
        pciDomainID: i32, tccDriver: i32, asyncEngineCount: i32, unifiedAddressing: i32, memoryClockRate: i32,
        memoryBusWidth: i32, l2CacheSize: i32, persistingL2CacheMaxSize: i32, maxThreadsPerMultiProcessor: i32,
        streamPrioritiesSupported: i32, globalL1CacheSupported: i32, localL1CacheSupported: i32,
        sharedMemPerMultiprocessor: usize, regsPerMultiprocessor: i32, managedMemory: i32, isMultiGpuBoard: i32,
        multiGpuBoardGroupID: i32, hostNativeAtomicSupported: i32, singleToDoublePrecisionPerfRatio: i32,
        pageableMemoryAccess: i32, concurrentManagedAccess: i32, computePreemptionSupported: i32,
        canUseHostPointerForRegisteredMem: i32, cooperativeLaunch: i32, cooperativeMultiDeviceLaunch: i32,
        sharedMemPerBlockOptin: usize, pageableMemoryAccessUsesHostPageTables: i32,
        directManagedMemAccessFromHost: i32, maxBlocksPerMultiProcessor: i32, accessPolicyMaxWindowSize: i32,
        reservedSharedMemPerBlock: usize, hostRegisterSupported: i32, sparseCudaArraySupported: i32,
        hostRegisterReadOnlySupported: i32, timelineSemaphoreInteropSupported: i32, memoryPoolsSupported: i32,
        gpuDirectRDMASupported: i32, gpuDirectRDMAFlushWritesOptions: u32, gpuDirectRDMAWritesOrdering: i32,
        memoryPoolSupportedHandleTypes: u32, deferredMappingCudaArraySupported: i32, ipcEventSupported: i32,
        clusterLaunch: i32, unifiedFunctionPointers: i32, reserved2: [i32; 2], reserved: [i32; 61],
    }
}

layout! {
    /// CUDA 13.
    Prop13 {
        name: [u8; 256], uuid: [u8; 16], luid: [u8; 8], luidDeviceNodeMask: u32, totalGlobalMem: usize,
        sharedMemPerBlock: usize, regsPerBlock: i32, warpSize: i32, memPitch: usize, maxThreadsPerBlock: i32,
        maxThreadsDim: [i32; 3], maxGridSize: [i32; 3], totalConstMem: usize, major: i32, minor: i32,
        textureAlignment: usize, texturePitchAlignment: usize, multiProcessorCount: i32, integrated: i32,
        canMapHostMemory: i32, maxTexture1D: i32, maxTexture1DMipmap: i32, maxTexture2D: [i32; 2],
        maxTexture2DMipmap: [i32; 2], maxTexture2DLinear: [i32; 3], maxTexture2DGather: [i32; 2],
        maxTexture3D: [i32; 3], maxTexture3DAlt: [i32; 3], maxTextureCubemap: i32, maxTexture1DLayered: [i32; 2],
        maxTexture2DLayered: [i32; 3], maxTextureCubemapLayered: [i32; 2], maxSurface1D: i32,
        maxSurface2D: [i32; 2], maxSurface3D: [i32; 3], maxSurface1DLayered: [i32; 2],
        maxSurface2DLayered: [i32; 3], maxSurfaceCubemap: i32, maxSurfaceCubemapLayered: [i32; 2],
        surfaceAlignment: usize, concurrentKernels: i32, ECCEnabled: i32, pciBusID: i32, pciDeviceID: i32,
        pciDomainID: i32, tccDriver: i32, asyncEngineCount: i32, unifiedAddressing: i32, memoryBusWidth: i32,
        l2CacheSize: i32, persistingL2CacheMaxSize: i32, maxThreadsPerMultiProcessor: i32,
        streamPrioritiesSupported: i32, globalL1CacheSupported: i32, localL1CacheSupported: i32,
        sharedMemPerMultiprocessor: usize, regsPerMultiprocessor: i32, managedMemory: i32, isMultiGpuBoard: i32,
        multiGpuBoardGroupID: i32, hostNativeAtomicSupported: i32, pageableMemoryAccess: i32,
        concurrentManagedAccess: i32, computePreemptionSupported: i32, canUseHostPointerForRegisteredMem: i32,
        cooperativeLaunch: i32, sharedMemPerBlockOptin: usize, pageableMemoryAccessUsesHostPageTables: i32,
        directManagedMemAccessFromHost: i32, maxBlocksPerMultiProcessor: i32, accessPolicyMaxWindowSize: i32,
        reservedSharedMemPerBlock: usize, hostRegisterSupported: i32, sparseCudaArraySupported: i32,
        hostRegisterReadOnlySupported: i32, timelineSemaphoreInteropSupported: i32, memoryPoolsSupported: i32,
        gpuDirectRDMASupported: i32, gpuDirectRDMAFlushWritesOptions: u32, gpuDirectRDMAWritesOrdering: i32,
        memoryPoolSupportedHandleTypes: u32, deferredMappingCudaArraySupported: i32, ipcEventSupported: i32,
        clusterLaunch: i32, unifiedFunctionPointers: i32, deviceNumaConfig: i32, deviceNumaId: i32, mpsEnabled: i32,
        hostNumaId: i32, gpuPciDeviceID: u32, gpuPciSubsystemID: u32, hostNumaMultinodeIpcSupported: i32,
        reserved: [i32; 56],
    }
}

impl Prop12 {
    /// With the clocks, which CUDA 13 left out.
    pub fn with_clocks(index: usize) -> Prop12 {
        let mut p = Prop12::of(index);
        let d = &state().all()[index];
        p.clockRate = d.clock() as i32;
        p.memoryClockRate = d.memory_clock() as i32;
        p.deviceOverlap = 1;
        p.singleToDoublePrecisionPerfRatio = 2;
        p
    }
}

/// The layout of CUDA 11, which the unsuffixed function of CUDA 12 still fills: CUDA 12's up to the reserved shared memory.
pub type Prop11 = [u8; std::mem::offset_of!(Prop12, hostRegisterSupported)];

/// Fills the layout that a caller of `cudaGetDeviceProperties` expects.
pub fn put(out: &Out<Prop12>, index: usize, version: i32, suffixed: bool) {
    if version >= 13000 && !suffixed {
        Out::<Prop13>::at(out.address()).set(Prop13::of(index));
    } else if suffixed {
        out.set(Prop12::with_clocks(index));
    } else {
        let p = Prop12::with_clocks(index);
        // SAFETY: reads the first bytes of `p`, a plain structure of numbers without padding that matters.
        let prefix: Prop11 = unsafe { std::ptr::read((&raw const p).cast()) };
        Out::<Prop11>::at(out.address()).set(prefix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_the_headers() {
        assert_eq!((size_of::<Prop12>(), size_of::<Prop13>()), (1032, 1008));
        assert_eq!(size_of::<Prop11>(), 728);
    }
}

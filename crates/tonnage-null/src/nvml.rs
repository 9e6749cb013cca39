//! NVML: what monitoring programs and frameworks ask of the null devices (a link `libnvidia-ml.so.1` leads here).
//! All devices of the machine are shown, as NVML does, whatever `CUDA_VISIBLE_DEVICES` says.

use crate::rt_device::{bus_id, driver_version};
use crate::settings::Device;
use crate::state::{state, uuid_text};
use crate::types::*;
use std::ffi::c_char;

const INVALID_ARGUMENT: i32 = 2;
const NOT_SUPPORTED_BY_NVML: i32 = 3;
const NOT_FOUND_BY_NVML: i32 = 6;
const TOO_SMALL: i32 = 7;

/// Handles of devices: this and the index times 16.
const DEVICES: usize = 0x7600_0000;

fn index(handle: usize) -> Option<usize> {
    Some(handle.checked_sub(DEVICES)? / 16).filter(|&i| i < state().all().len())
}

fn give(out: &Out<usize>, found: Option<usize>, otherwise: i32) -> i32 {
    match found.filter(|&i| i < state().all().len()) {
        Some(i) => {
            out.set(DEVICES + i * 16);
            OK
        }
        None => otherwise,
    }
}

fn with(handle: usize, work: impl FnOnce(usize, &Device)) -> i32 {
    match index(handle) {
        Some(i) => {
            work(i, &state().all()[i]);
            OK
        }
        None => INVALID_ARGUMENT,
    }
}

fn text(to: &Out<u8>, room: u32, text: &str) -> i32 {
    if (room as usize) <= text.len() {
        return TOO_SMALL;
    }
    put_text(to, room as usize, text);
    OK
}

fn by_bus(name: &str) -> Option<usize> {
    (0..state().all().len()).find(|&i| name.to_ascii_lowercase().ends_with(&bus_id(i)))
}

/// `nvmlPciInfo_t`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PciInfo {
    legacy: [u8; 16],
    domain: u32,
    bus: u32,
    device: u32,
    id: u32,
    subsystem: u32,
    name: [u8; 32],
}

fn pci(i: usize) -> PciInfo {
    let mut p = PciInfo {
        legacy: [0; 16],
        domain: 0,
        bus: i as u32 + 1,
        device: 0,
        id: 0,
        subsystem: 0,
        name: [0; 32],
    };
    let name = bus_id(i);
    p.legacy[..name.len()].copy_from_slice(name.as_bytes());
    p.name[..name.len() + 4].copy_from_slice(format!("0000{name}").as_bytes());
    p
}

/// `nvmlMemory_v2_t`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemoryV2 {
    version: u32,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

fn clock(handle: usize, kind: i32, out: &Out<u32>) -> i32 {
    with(handle, |_, d| {
        out.set(
            if kind == 2 {
                d.memory_clock()
            } else {
                d.clock()
            } / 1000,
        )
    })
}

/// This process, where it has a context on the device: {pid, used bytes, ...}.
fn processes(h: usize, n: &Out<u32>, room: bool, put: impl FnOnce(u64, u64)) -> i32 {
    let Some(i) = index(h) else {
        return INVALID_ARGUMENT;
    };
    let used = state().in_use(i);
    let have = n.get().unwrap_or(0);
    n.set(used.is_some() as u32);
    match used {
        Some(_) if have == 0 || !room => TOO_SMALL,
        Some(used) => {
            put(std::process::id() as u64, used);
            OK
        }
        None => OK,
    }
}

api! {
    fn nvmlInit() -> i32 { OK }
    fn nvmlInit_v2() -> i32 { OK }
    fn nvmlInitWithFlags(_flags: u32) -> i32 { OK }
    fn nvmlShutdown() -> i32 { OK }
    fn nvmlErrorString(e: i32) -> *const c_char {
        match e {
            OK => c"Success",
            INVALID_ARGUMENT => c"Invalid Argument",
            NOT_SUPPORTED_BY_NVML => c"Not Supported",
            NOT_FOUND_BY_NVML => c"Not Found",
            TOO_SMALL => c"Insufficient Size",
            _ => c"Unknown Error",
        }.as_ptr()
    }
    fn nvmlSystemGetDriverVersion(to: Out<u8>, room: u32) -> i32 { text(&to, room, state().driver_version()) }
    fn nvmlSystemGetNVMLVersion(to: Out<u8>, room: u32) -> i32 { text(&to, room, &format!("13.{}", state().driver_version())) }
    fn nvmlSystemGetCudaDriverVersion(v: Out<i32>) -> i32 { v.set(driver_version()); OK }
    fn nvmlSystemGetCudaDriverVersion_v2(v: Out<i32>) -> i32 { v.set(driver_version()); OK }
    fn nvmlDeviceGetCount(n: Out<u32>) -> i32 { n.set(state().all().len() as u32); OK }
    fn nvmlDeviceGetCount_v2(n: Out<u32>) -> i32 { n.set(state().all().len() as u32); OK }
    fn nvmlDeviceGetHandleByIndex(i: u32, h: Out<usize>) -> i32 { give(&h, Some(i as usize), INVALID_ARGUMENT) }
    fn nvmlDeviceGetHandleByIndex_v2(i: u32, h: Out<usize>) -> i32 { give(&h, Some(i as usize), INVALID_ARGUMENT) }
    fn nvmlDeviceGetHandleByUUID(id: Text, h: Out<usize>) -> i32 {
        give(&h, (0..state().all().len()).find(|&i| uuid_text(i) == id.get()), NOT_FOUND_BY_NVML)
    }
    fn nvmlDeviceGetHandleByPciBusId(name: Text, h: Out<usize>) -> i32 { give(&h, by_bus(name.get()), NOT_FOUND_BY_NVML) }
    fn nvmlDeviceGetHandleByPciBusId_v2(name: Text, h: Out<usize>) -> i32 { give(&h, by_bus(name.get()), NOT_FOUND_BY_NVML) }
    fn nvmlDeviceGetIndex(h: usize, out: Out<u32>) -> i32 { with(h, |i, _| out.set(i as u32)) }
    fn nvmlDeviceGetMinorNumber(h: usize, out: Out<u32>) -> i32 { with(h, |i, _| out.set(i as u32)) }
    fn nvmlDeviceGetName(h: usize, to: Out<u8>, room: u32) -> i32 {
        index(h).map_or(INVALID_ARGUMENT, |i| text(&to, room, &state().name(i)))
    }
    fn nvmlDeviceGetUUID(h: usize, to: Out<u8>, room: u32) -> i32 { index(h).map_or(INVALID_ARGUMENT, |i| text(&to, room, &uuid_text(i))) }
    fn nvmlDeviceGetSerial(_h: usize) -> i32 { NOT_SUPPORTED_BY_NVML }
    fn nvmlDeviceGetBrand(h: usize, out: Out<i32>) -> i32 { with(h, |_, _| out.set(0)) }
    fn nvmlDeviceGetArchitecture(h: usize, out: Out<u32>) -> i32 {
        with(h, |_, d| out.set(match d.arch() {
            0..50 => 2, 50..60 => 3, 60..70 => 4, 70..75 => 5, 75..80 => 6, 80..89 => 7, 89 => 8, 90..100 => 9, _ => 10,
        }))
    }
    fn nvmlDeviceGetCudaComputeCapability(h: usize, major: Out<i32>, minor: Out<i32>) -> i32 {
        with(h, |_, d| { major.set(d.capability.0 as i32); minor.set(d.capability.1 as i32); })
    }
    fn nvmlDeviceGetMemoryInfo(h: usize, out: Out<[u64; 3]>) -> i32 {
        with(h, |i, _| { let (free, total) = state().totals(i); out.set([total, free, total - free]); })
    }
    fn nvmlDeviceGetMemoryInfo_v2(h: usize, out: Out<MemoryV2>) -> i32 {
        with(h, |i, _| {
            let (free, total) = state().totals(i);
            let version = out.get().map_or(0, |m| m.version);
            out.set(MemoryV2 { version, total, reserved: 0, free, used: total - free });
        })
    }
    fn nvmlDeviceGetBAR1MemoryInfo(h: usize, out: Out<[u64; 3]>) -> i32 { with(h, |_, _| out.set([256 << 20, 256 << 20, 0])) }
    fn nvmlDeviceGetUtilizationRates(h: usize, out: Out<[u32; 2]>) -> i32 { with(h, |_, _| out.set([0, 0])) }
    fn nvmlDeviceGetTemperature(h: usize, _sensor: i32, out: Out<u32>) -> i32 { with(h, |_, _| out.set(30)) }
    fn nvmlDeviceGetPowerUsage(h: usize, out: Out<u32>) -> i32 { with(h, |_, _| out.set(0)) }
    fn nvmlDeviceGetPowerManagementLimit(_h: usize) -> i32 { NOT_SUPPORTED_BY_NVML }
    fn nvmlDeviceGetEnforcedPowerLimit(_h: usize) -> i32 { NOT_SUPPORTED_BY_NVML }
    fn nvmlDeviceGetFanSpeed(_h: usize) -> i32 { NOT_SUPPORTED_BY_NVML }
    fn nvmlDeviceGetPerformanceState(h: usize, out: Out<i32>) -> i32 { with(h, |_, _| out.set(0)) }
    fn nvmlDeviceGetClockInfo(h: usize, kind: i32, out: Out<u32>) -> i32 { clock(h, kind, &out) }
    fn nvmlDeviceGetMaxClockInfo(h: usize, kind: i32, out: Out<u32>) -> i32 { clock(h, kind, &out) }
    fn nvmlDeviceGetPciInfo(h: usize, out: Out<PciInfo>) -> i32 { with(h, |i, _| out.set(pci(i))) }
    fn nvmlDeviceGetPciInfo_v2(h: usize, out: Out<PciInfo>) -> i32 { with(h, |i, _| out.set(pci(i))) }
    fn nvmlDeviceGetPciInfo_v3(h: usize, out: Out<PciInfo>) -> i32 { with(h, |i, _| out.set(pci(i))) }
    fn nvmlDeviceGetNumGpuCores(h: usize, out: Out<u32>) -> i32 { with(h, |_, d| out.set(d.sms * 128)) }
    fn nvmlDeviceGetMemoryBusWidth(h: usize, out: Out<u32>) -> i32 { with(h, |_, d| out.set(d.bus_bits())) }
    fn nvmlDeviceGetEccMode(h: usize, now: Out<i32>, next: Out<i32>) -> i32 {
        with(h, |_, d| { now.set(d.ecc() as i32); next.set(d.ecc() as i32); })
    }
    fn nvmlDeviceGetPersistenceMode(h: usize, out: Out<i32>) -> i32 { with(h, |_, _| out.set(1)) }
    fn nvmlDeviceGetDisplayMode(h: usize, out: Out<i32>) -> i32 { with(h, |_, _| out.set(0)) }
    fn nvmlDeviceGetDisplayActive(h: usize, out: Out<i32>) -> i32 { with(h, |_, _| out.set(0)) }
    fn nvmlDeviceGetComputeMode(h: usize, out: Out<i32>) -> i32 { with(h, |_, _| out.set(0)) }
    fn nvmlDeviceGetMigMode(_h: usize) -> i32 { NOT_SUPPORTED_BY_NVML }
    fn nvmlDeviceGetP2PStatus(_a: usize, _b: usize, _kind: i32, out: Out<i32>) -> i32 { out.set(1); OK }
    fn nvmlDeviceGetTopologyCommonAncestor(_a: usize, _b: usize, out: Out<i32>) -> i32 { out.set(40); OK }
    fn nvmlDeviceGetNvLinkState(_h: usize) -> i32 { NOT_SUPPORTED_BY_NVML }
    fn nvmlDeviceGetNvLinkCapability(_h: usize) -> i32 { NOT_SUPPORTED_BY_NVML }
    fn nvmlDeviceGetNvLinkRemoteDeviceType(_h: usize, _link: u32, kind: Out<i32>) -> i32 { kind.set(255); NOT_SUPPORTED_BY_NVML }
    fn nvmlDeviceGetNvLinkRemotePciInfo_v2(_h: usize) -> i32 { NOT_SUPPORTED_BY_NVML }
    fn nvmlDeviceGetFieldValues(_h: usize) -> i32 { NOT_SUPPORTED_BY_NVML }
    // no fabric is a state (byte 28), not an error: torch 2.13 insists on success for expandable segments
    fn nvmlDeviceGetGpuFabricInfoV(h: usize, info: Out<u8>) -> i32 { with(h, |_, _| info.set_at(28, 0)) }
    fn nvmlDeviceGetMemoryAffinity(_h: usize) -> i32 { NOT_SUPPORTED_BY_NVML }
    fn nvmlDeviceGetCpuAffinity(_h: usize, n: u32, set: Out<usize>) -> i32 { (0..n as usize).for_each(|i| set.set_at(i, usize::MAX)); OK }
    fn nvmlDeviceGetNumaNodeId(h: usize, out: Out<u32>) -> i32 { with(h, |_, _| out.set(0)) }
    fn nvmlDeviceGetComputeRunningProcesses(h: usize, n: Out<u32>, list: Out<[u64; 2]>) -> i32 {
        processes(h, &n, !list.is_null(), |pid, used| list.set([pid, used]))
    }
    fn nvmlDeviceGetComputeRunningProcesses_v2(h: usize, n: Out<u32>, list: Out<[u64; 3]>) -> i32 {
        processes(h, &n, !list.is_null(), |pid, used| list.set([pid, used, u64::MAX]))
    }
    fn nvmlDeviceGetComputeRunningProcesses_v3(h: usize, n: Out<u32>, list: Out<[u64; 3]>) -> i32 {
        processes(h, &n, !list.is_null(), |pid, used| list.set([pid, used, u64::MAX]))
    }
    fn nvmlDeviceGetGraphicsRunningProcesses_v3(_h: usize, n: Out<u32>) -> i32 { n.set(0); OK }
}

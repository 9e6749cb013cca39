//! cuDNN: plans exist and ask for no workspace, since the sizes of real plans are not public.

use crate::missing::handle;
use crate::types::*;

const INT64: i32 = 3;
const INT32: i32 = 23;
const DESCRIPTOR: i32 = 15;
const ENGINE_HEURISTIC_RESULTS: i32 = 202;
const ENGINE_CONFIG_WORKSPACE: i32 = 303;
const PLAN_WORKSPACE: i32 = 402;
const ENGINE_INDEX: i32 = 1301;

api! {
    fn cudnnGetStream(_h: usize, stream: Out<usize>) -> i32 { stream.set(0); OK }
    fn cudnnBackendCreateDescriptor(_kind: i32, d: Out<usize>) -> i32 { d.set(handle()); OK }
    fn cudnnBackendGetAttribute(_d: usize, which: i32, kind: i32, asked: i64, found: Out<i64>, to: Out<u8>) -> i32 {
        let one = matches!(which, ENGINE_CONFIG_WORKSPACE | PLAN_WORKSPACE | ENGINE_INDEX);
        let width = match kind { INT64 => 8, INT32 => 4, _ => 0 };
        let (count, zeroed) = match kind {
            _ if which == ENGINE_HEURISTIC_RESULTS => (1, 0),
            INT64 | INT32 if one => (1, width.min(asked.max(0) as usize * width)),
            INT64 | INT32 => ((asked > 0) as i64, asked.max(0) as usize * width),
            DESCRIPTOR => ((asked > 0) as i64, 0),
            _ => (0, 0),
        };
        (0..zeroed).for_each(|i| to.set_at(i, 0));
        found.set(count);
        OK
    }
    fn cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(_h: usize, _mode: i32, _ops: i32, _x: usize, _z: usize, _y: usize, _bn: usize, _act: usize, n: Out<usize>) -> i32 { n.set(0); OK }
    fn cudnnGetBatchNormalizationBackwardExWorkspaceSize(_h: usize, _mode: i32, _ops: i32, _x: usize, _y: usize, _dy: usize, _dz: usize, _dx: usize, _bn: usize, _act: usize, n: Out<usize>) -> i32 { n.set(0); OK }
    fn cudnnGetBatchNormalizationTrainingExReserveSpaceSize(_h: usize, _mode: i32, _ops: i32, _act: usize, _x: usize, n: Out<usize>) -> i32 { n.set(0); OK }
}

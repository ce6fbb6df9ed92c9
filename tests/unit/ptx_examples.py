"""Statements that the rules of the PTX legaliser concern, in a kernel that ptxas can assemble."""

from __future__ import annotations

REGISTERS = """
.reg .pred %p<16>; .reg .b16 %rs<16>; .reg .b32 %r<32>; .reg .f32 %f<16>;
.reg .b64 %rd<16>; .reg .f64 %fd<8>;
"""


def kernel(name: str, body: str) -> str:
    """A kernel around statements, every register and address of which has a value."""
    return f"""
.visible .entry {name}(.param .u64 p0, .param .u32 p1)
{{{REGISTERS}
ld.param.u64 %rd0, [p0]; ld.param.u32 %r0, [p1]; cvta.to.global.u64 %rd1, %rd0;
mov.b64 %rd2, 2; mov.b64 %rd3, 3; mov.u32 %r10, words; mov.u64 %rd10, words;
mov.b32 %r1, 1; mov.b32 %r2, 2; mov.b32 %r3, 3; mov.b32 %r4, 4; mov.b32 %r6, 6; mov.b32 %r7, 7;
mov.b16 %rs1, 1; mov.b16 %rs2, 2; mov.b16 %rs3, 3; mov.b16 %rs4, 4;
mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f40000000; mov.f32 %f3, 0f40400000; mov.f32 %f4, 0f40800000;
mov.f64 %fd1, 0d3FF0000000000000;
setp.ne.b32 %p1, %r0, 0; setp.ne.b32 %p2, %r0, 1;
{body}
ret;
}}
"""


def module(kernels: str, version: str = "8.7", target: str = "sm_90") -> str:
    """A module of kernels."""
    return f"""//
.version {version}
.target {target}
.address_size 64
.extern .shared .align 16 .b8 words[];
.global .align 16 .b8 variable[64];
{kernels}"""


# By the rule's name. None of them is in a form that ptxas of CUDA 12.8 would refuse everywhere.
EXAMPLES: dict[str, list[str]] = {
    "cache eviction": [
        "ld.global.L1::evict_last.b32 %r5, [%rd1];",
        "ld.global.L1::evict_first.v4.b32 {%r5, %r6, %r7, %r8}, [ %rd1 + 16 ];",
        "ld.global.L1::evict_normal.b32 %r5, [%rd1];",
        "ld.global.L1::evict_unchanged.b32 %r5, [%rd1];",
        "ld.global.L1::no_allocate.b32 %r5, [%rd1];",
        "ld.global.nc.L1::evict_last.b64 %rd5, [%rd1];",
        "st.global.L1::evict_last.b32 [%rd1], %r6;",
        "st.global.L1::no_allocate.v2.b32 [%rd1+8], {%r6, %r7};",
    ],
    "prefetch size": [
        "ld.global.L2::64B.b32 %r5, [%rd1];",
        "ld.global.nc.L2::128B.v2.b32 {%r5, %r6}, [%rd1];",
        "ld.global.L2::256B.b32 %r5, [%rd1];",
        "ld.global.L1::evict_last.L2::256B.b32 %r5, [%rd1];",
    ],
    "cache policy": [
        "ld.global.L2::cache_hint.b32 %r5, [%rd1], %rd2;",
        "ld.global.L1::evict_first.L2::cache_hint.v2.b32 {%r5, %r6}, [%rd1], %rd2;",
        "st.global.L1::evict_last.L2::cache_hint.b32 [%rd1], %r6, %rd2;",
        "atom.global.add.L2::cache_hint.u32 %r5, [%rd1], %r6, %rd2;",
        "atom.global.exch.L2::cache_hint.b32 %r5, [%rd1], 7, %rd2;",
        "red.global.add.L2::cache_hint.u32 [%rd1], %r6, %rd2;",
    ],
    "createpolicy": [
        "createpolicy.fractional.L2::evict_last.b64 %rd4, 1.0;",
        "createpolicy.fractional.L2::evict_first.b64 %rd4;",
        "createpolicy.range.global.L2::evict_last.b64 %rd5, [%rd1], 0x100, 0x200;",
        "createpolicy.cvt.L2.b64 %rd5, 0x1;",
    ],
    "prefetch with priority": [
        "prefetch.global.L2::evict_last [%rd1];",
        "prefetch.global.L2::evict_normal [%rd1+128];",
    ],
    "cache control": [
        "applypriority.global.L2::evict_normal [%rd1], 128;",
        "discard.global.L2 [%rd1], 128;",
    ],
    "weak access": ["ld.weak.global.b32 %r5, [%rd1];", "st.weak.shared.b32 [%r10], %r6;"],
    "access order": [
        "ld.relaxed.gpu.global.b32 %r5, [%rd1];",
        "ld.relaxed.cta.shared.b32 %r5, [%r10];",
        "ld.relaxed.cta.shared::cta.b32 %r5, [words+4];",
        "ld.acquire.gpu.global.b32 %r5, [%rd1];",
        "ld.global.acquire.gpu.b32 %r5, [%rd1];",
        "ld.acquire.gpu.b64 %rd0, [%rd0];",
        "ld.acquire.cta.b8 %rs5, [%rd0];",
        "ld.acquire.cluster.b32 %r5, [%rd0];",
        "ld.relaxed.sys.v2.b32 {%r5, %r6}, [%rd0];",
        "ld.relaxed.gpu.global.L1::no_allocate.b32 %r5, [%rd1];",
        "ld.mmio.relaxed.sys.global.b32 %r5, [%rd1];",
        "st.relaxed.gpu.global.b32 [%rd1], %r6;",
        "st.release.sys.global.v4.b32 [%rd1], {%r1, %r2, %r3, %r4};",
        "st.release.cta.shared.b16 [%r10+2], %rs1;",
        "st.release.cluster.b32 [%rd0], %r6;",
        "st.mmio.relaxed.sys.global.b32 [%rd1], %r6;",
    ],
    "atomic order": [
        "atom.global.gpu.acq_rel.add.u32 %r5, [%rd1], %r6;",
        "atom.global.acq_rel.gpu.cas.b32 %r5, [%rd1], %r6, %r7;",
        "atom.acq_rel.gpu.global.cas.b64 %rd5, [%rd1], %rd2, %rd3;",
        "atom.global.gpu.relaxed.add.f32 %f5, [%rd1], %f1;",
        "atom.global.cta.acquire.exch.b32 %r5, [%rd1+4], 7;",
        "atom.sys.release.max.s32 %r5, [%rd0], %r6;",
        "atom.acq_rel.cluster.add.u32 %r5, [%rd0], %r6;",
        "atom.shared.cta.acq_rel.inc.u32 %r5, [%r10], %r6;",
        "atom.relaxed.gpu.global.and.b64 _, [%rd1], %rd2;",
        "red.relaxed.gpu.global.add.u32 [%rd1], %r6;",
        "red.release.sys.global.or.b32 [%rd1], %r6;",
    ],
    "atomic scope": [
        "atom.global.gpu.add.u32 %r5, [%rd1], %r6;",
        "atom.shared.cta.add.u32 %r5, [%r10], %r6;",
        "atom.global.sys.add.u64 %rd5, [%rd1], %rd2;",
        "atom.global.cluster.add.u32 %r5, [%rd1], %r6;",
        "red.global.cta.add.f32 [%rd1], %f1;",
    ],
    "fence": [
        "fence.acq_rel.gpu;",
        "fence.sc.sys;",
        "fence.acq_rel.cta;",
        "fence.sc.cluster;",
        "fence.proxy.alias;",
        "fence.proxy.async;",
        "fence.proxy.async.shared::cta;",
        "fence.proxy.async.global;",
        "fence.proxy.tensormap::generic.release.gpu;",
        "fence.mbarrier_init.release.cluster;",
    ],
    "alias fence": ["membar.proxy.alias;"],
    "vector atomic": [
        "atom.global.v2.f32.add {%f5, %f6}, [%rd1], {%f1, %f2};",
        "atom.global.add.v4.f32 {%f5, %f6, %f7, %f8}, [%rd1+16], {%f1, %f2, %f3, %f4};",
        "atom.global.gpu.relaxed.add.noftz.v2.f16x2 {%r5, %r6}, [%rd1], {%r1, %r2};",
        "atom.global.max.noftz.v4.bf16 {%rs5, %rs6, %rs7, %rs8}, [%rd1], {%rs1, %rs2, %rs3, %rs4};",
        "red.global.v2.f32.add [%rd1], {%f1, %f2};",
        "red.global.add.noftz.v4.bf16x2 [%rd1], {%r1, %r2, %r3, %r4};",
        "red.global.min.noftz.v8.f16 [%rd1], {%rs1, %rs2, %rs3, %rs4, %rs1, %rs2, %rs3, %rs4};",
    ],
    "half atomic": [
        "atom.global.add.noftz.f16 %rs5, [%rd1], %rs1;",
        "atom.global.gpu.acq_rel.add.noftz.f16 %rs5, [ %rd1 + 2 ], %rs1;",
        "atom.global.gpu.relaxed.add.noftz.f16 %rs5, [%rd1+-2], %rs1;",
        "atom.add.noftz.f16 %rs5, [%rd0], %rs1;",
        "atom.shared.add.noftz.f16 %rs5, [%r10], %rs1;",
        "atom.shared.add.noftz.f16 %rs5, [%rd10], %rs1;",
        "atom.shared.add.noftz.f16 %rs5, [words+6], %rs1;",
        "atom.global.add.noftz.f16 _, [variable+2], %rs1;",
        "red.global.add.noftz.f16 [%rd1], %rs1;",
        "atom.global.add.noftz.f16x2 %r5, [%rd1], %r6;",
        "atom.shared.add.noftz.f16x2 _, [%r10+4], %r6;",
        "red.global.add.noftz.f16x2 [%rd1], %r6;",
        "atom.global.add.noftz.bf16 %rs5, [%rd1], %rs1;",
        "atom.global.sys.acquire.add.noftz.bf16x2 %r5, [%rd1], %r6;",
        "red.shared::cta.add.noftz.bf16x2 [%r10], %r6;",
        "atom.global.cas.b16 %rs5, [%rd1], %rs1, %rs2;",
        "atom.global.acq_rel.gpu.cas.b16 %rs1, [%rd1+6], 0, %rs1;",
        "atom.shared.cas.b16 %rs5, [%r10], %rs1, %rs2;",
    ],
    "double atomic": [
        "atom.global.add.f64 %fd5, [%rd1], %fd1;",
        "atom.global.gpu.acq_rel.add.f64 %fd5, [%rd1], 0d3FF0000000000000;",
        "atom.shared.add.f64 %fd5, [%r10], %fd1;",
        "atom.add.f64 %fd5, [%rd0+8], %fd1;",
        "red.global.add.f64 [%rd1], %fd1;",
    ],
    "half conversion": [
        "cvt.rn.bf16.f32 %rs5, %f1;",
        "cvt.rz.bf16.f32 %rs5, %f1;",
        "cvt.rn.relu.bf16.f32 %rs5, %f1;",
        "cvt.rn.satfinite.bf16.f32 %rs5, %f1;",
        "cvt.rn.bf16x2.f32 %r5, %f1, %f2;",
        "cvt.rz.relu.bf16x2.f32 %r5, %f1, %f2;",
        "cvt.rn.f16x2.f32 %r5, %f1, %f2;",
        "cvt.rz.f16x2.f32 %r5, %f1, %f2;",
        "cvt.rn.relu.f16x2.f32 %r5, %f1, 0f3F800000;",
        "cvt.rn.satfinite.f16.f32 %rs5, %f1;",
        "cvt.rn.relu.f16.f32 %rs5, %f1;",
        "cvt.f32.bf16 %f5, %rs1;",
        "cvt.f32.bf16 %r5, %rs1;",
        "cvt.ftz.f32.bf16 %f5, %rs1;",
        "cvt.f64.bf16 %fd5, %rs1;",
        "cvt.rn.bf16.s32 %rs5, %r1;",
        "cvt.rn.bf16.u16 %rs5, %rs1;",
        "cvt.rz.bf16.u64 %rs5, %rd2;",
        "cvt.rn.bf16.f16 %rs5, %rs1;",
        "cvt.rn.f16.bf16 %rs5, %rs1;",
        "cvt.rn.bf16.f64 %rs5, %fd1;",
        "cvt.rzi.s32.bf16 %r5, %rs1;",
        "cvt.rni.bf16.bf16 %rs5, %rs1;",
    ],
    "tf32 conversion": [
        "cvt.rna.tf32.f32 %r5, %f1;",
        "cvt.rn.tf32.f32 %r5, %f1;",
        "cvt.rz.relu.tf32.f32 %r5, %f1;",
    ],
    "fp8 conversion": [
        "cvt.rn.satfinite.e4m3x2.f32 %rs5, %f1, %f2;",
        "cvt.rn.satfinite.e5m2x2.f32 %rs5, %f1, %f2;",
        "cvt.rn.satfinite.relu.e5m2x2.f32 %rs5, %f1, %f2;",
        "cvt.rn.satfinite.e4m3x2.f16x2 %rs5, %r1;",
        "cvt.rn.satfinite.e5m2x2.f16x2 %rs5, %r1;",
        "cvt.rn.f16x2.e4m3x2 %r5, %rs1;",
        "cvt.rn.relu.f16x2.e5m2x2 %r5, %rs1;",
    ],
    "packing conversion": [
        "cvt.pack.sat.s16.s32 %r5, %r1, %r2;",
        "cvt.pack.sat.u8.s32.b32 %r5, %r1, %r2, %r3;",
    ],
    "half arithmetic": [
        "add.f16 %rs5, %rs1, %rs2;",
        "add.sat.f16 %rs5, %rs1, %rs2;",
        "add.ftz.f16x2 %r5, %r1, %r2;",
        "sub.rn.f16 %rs5, %rs1, %rs2;",
        "mul.f16x2 %r5, %r1, %r2;",
        "fma.rn.f16 %rs5, %rs1, %rs2, %rs3;",
        "fma.rn.f16x2 %r5, %r1, %r2, %r3;",
        "fma.rn.relu.f16 %rs5, %rs1, %rs2, %rs3;",
        "neg.f16 %rs5, %rs1;",
        "abs.f16x2 %r5, %r1;",
        "min.f16 %rs5, %rs1, %rs2;",
        "max.NaN.f16x2 %r5, %r1, %r2;",
        "max.xorsign.abs.f16 %rs5, %rs1, %rs2;",
        "ex2.approx.f16 %rs5, %rs1;",
        "ex2.approx.f16x2 %r5, %r1;",
        "tanh.approx.f16 %rs5, %rs1;",
        "tanh.approx.f32 %f5, %f1;",
        "add.bf16 %rs5, %rs1, %rs2;",
        "sub.rn.bf16x2 %r5, %r1, %r2;",
        "mul.rn.bf16x2 %r5, %r1, %r2;",
        "fma.rn.bf16 %rs5, %rs1, %rs2, %rs3;",
        "fma.rn.relu.bf16x2 %r5, %r1, %r2, %r3;",
        "neg.bf16x2 %r5, %r1;",
        "abs.bf16 %rs5, %rs1;",
        "min.bf16 %rs5, %rs1, %rs2;",
        "max.NaN.bf16x2 %r5, %r1, %r2;",
        "ex2.approx.ftz.bf16 %rs5, %rs1;",
        "tanh.approx.bf16x2 %r5, %r1;",
        "min.NaN.f32 %f5, %f1, %f2;",
        "max.ftz.NaN.f32 %f5, %f1, 0f3F800000;",
        "min.NaN.xorsign.abs.f32 %f5, %f1, %f2;",
    ],
    "half comparison": [
        "setp.lt.f16 %p3, %rs1, %rs2;",
        "setp.lt.and.f16 %p3, %rs1, %rs2, !%p1;",
        "setp.gtu.f16x2 %p3|%p4, %r1, %r2;",
        "setp.nan.ftz.f16 %p3, %rs1, %rs2;",
        "setp.eq.bf16 %p3, %rs1, %rs2;",
        "setp.lt.or.bf16x2 %p1|%p4, %r1, %r2, %p1;",
    ],
    "half set": [
        "set.lt.f16.f16 %rs5, %rs1, %rs2;",
        "set.lt.u32.f16 %r5, %rs1, %rs2;",
        "set.lt.f16x2.f16x2 %r5, %r1, %r2;",
        "set.ge.and.u32.bf16 %r5, %rs1, %rs2, %p1;",
    ],
    "lop3": [
        "lop3.b32 %r5, %r1, %r2, %r3, 0x96;",
        "lop3.b32 %r5, %r1, 0x7fff7fff, 0, 0xc0;",
        "lop3.b32 %r5, %r1, %r2, %r3, 0;",
        "lop3.or.b32 %r5|%p3, %r1, %r2, %r3, 0xe8, %p1;",
        "lop3.and.b32 _|%p3, %r1, %r2, %r3, 0x1b, !%p1;",
    ],
    "dot product": [
        "dp4a.s32.s32 %r5, %r1, %r2, %r3;",
        "dp4a.u32.s32 %r5, %r1, %r2, 0;",
        "dp2a.lo.s32.u32 %r5, %r1, %r2, %r3;",
        "dp2a.hi.u32.u32 %r5, %r1, %r2, %r3;",
    ],
    "bit mask": ["bmsk.clamp.b32 %r5, %r1, %r2;", "bmsk.wrap.b32 %r5, %r1, 3;"],
    "extension": ["szext.clamp.s32 %r5, %r1, %r2;", "szext.wrap.u32 %r5, %r1, %r2;"],
    "warp reduction": [
        "redux.sync.add.s32 %r5, %r1, %r2;",
        "redux.sync.max.u32 %r5, %r1, 0xffffffff;",
        "redux.sync.xor.b32 %r5, %r1, 0xff;",
        "redux.sync.min.s32 %r1, %r1, %r1;",
    ],
    "match": [
        "match.any.sync.b32 %r5, %r1, 0xffffffff;",
        "match.any.sync.b64 %r5, %rd2, %r3;",
        "match.all.sync.b32 %r5|%p3, %r1, 0xffffffff;",
        "match.all.sync.b64 %r5|%p3, %rd2, %r3;",
    ],
    "elect": ["elect.sync %r5|%p3, 0xffffffff;", "elect.sync _|%p3, %r3;"],
    "asynchronous copy": [
        "cp.async.ca.shared.global [%r10], [%rd1], 4;",
        "cp.async.ca.shared.global [ %r10 + 8 ], [ %rd1 + 8 ], 8, 3;",
        "cp.async.cg.shared.global [%r10], [%rd1], 16, %r1;",
        "cp.async.cg.shared::cta.global [words+16], [variable], 0x10, 0x10;",
        "cp.async.cg.shared.global.L2::cache_hint [%r10], [%rd1], 16, %r1, %rd2;",
        "cp.async.ca.shared.global.L2::128B [%rd10], [%rd1+16], 16;",
        "cp.async.cg.shared::cta.global [%r10], [%rd1], 16, %p2;",
    ],
    "asynchronous group": [
        "cp.async.commit_group;",
        "cp.async.wait_group 0x2;",
        "cp.async.wait_all;",
    ],
    "sleep": ["nanosleep.u32 100;", "nanosleep.u32 %r1;"],
    "dependent grids": ["griddepcontrol.wait;", "griddepcontrol.launch_dependents;"],
    "register count": [],  # only assembles for a target with a letter, below
}

# What ptxas of CUDA 12.8 refuses for targets without a letter, or altogether.
ELSEWHERE: dict[str, list[str]] = {
    "cache eviction": ["ld.global.L2::evict_last.b32 %r5, [%rd1];"],
    "tf32 conversion": ["cvt.rn.satfinite.tf32.f32 %r5, %f1;"],
    "register count": ["setmaxnreg.inc.sync.aligned.u32 232;"],
    "half atomic": [
        "red.global.max.noftz.f16x2 [%rd1], %r6;",
        "atom.global.add.noftz.f16 %rs5, [%rd1], 0x3C00;",
    ],
    "half conversion": ["cvt.rn.bf16.s8 %rs5, %rs1;", "cvt.f32.bf16 %f5, 0x3F80;"],
    "half comparison": ["setp.lt.and.bf16 %p3|%p4, %rs1, 0x3F80, %p1;"],
}

# Instructions with nothing to stand in for them, which the legaliser refuses.
REFUSED = [
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r5, %r6, %r7, %r8}, [%r10];",
    "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r10], {%r5, %r6, %r7, %r8};",
    "movmatrix.sync.aligned.m8n8.trans.b16 %r5, %r1;",
    "mma.sync.aligned.m8n8k4.row.col.f16.f16.f16.f16 {%r5, %r6, %r7, %r8}, {%r1, %r2}, "
    "{%r1, %r2}, {%r1, %r2, %r3, %r4};",
    "mbarrier.init.shared::cta.b64 [%r10], 1;",
    "mbarrier.try_wait.parity.shared.b64 %p3, [%r10], 0;",
    "cp.async.bulk.commit_group;",
    "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%rd1], [%r10], 16;",
    "cp.async.mbarrier.arrive.noinc.shared.b64 [%r10];",
    "barrier.cluster.arrive.aligned;",
    "mapa.shared::cluster.u32 %r5, %r10, 1;",
    "getctarank.u64 %r5, %rd0;",
    "multimem.ld_reduce.relaxed.sys.global.add.f32 %f5, [%rd1];",
    "ld.shared::cluster.b32 %r5, [%r10];",
    "atom.shared::cluster.add.u32 %r5, [%r10], %r6;",
    "isspacep.shared::cluster %p3, %rd0;",
    "isspacep.param %p3, %rd0;",
    "cvta.param.u64 %rd5, %rd0;",
    "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r10], %r1, [%r10];",
    "min.s16x2 %r5, %r1, %r2;",
    "fma.rn.oob.f16 %rs5, %rs1, %rs2, %rs3;",
    "add.f32.bf16 %f5, %rs1, %f2;",
    "fma.rn.f32.f16 %f5, %rs1, %rs2, %f3;",
    "min.relu.s32 %r5, %r1, %r2;",
    "ld.global.v4.b64 {%rd5, %rd6, %rd7, %rd8}, [%rd1];",
]

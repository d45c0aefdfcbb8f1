//! The processor's own tile registers, by inline assembly: the intrinsics are not stable.

use super::{BLOCK, Emulated, SIDE, Sides, TileRegisters, Tiles, Units, multiply};
use crate::cpu::simd::Simd;
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::marker::PhantomData;
use std::sync::OnceLock;

/// The processor's tile registers; used only where [`detect`] says that they are there.
#[derive(Debug, Clone, Copy)]
pub struct Hardware;

impl<S: Simd> Tiles<S, Hardware> {
    /// A kernel on the processor's registers, where it has them and the kernel lends them.
    pub fn detect(s: S) -> Option<Self> {
        detect().then_some(Self { s, registers: PhantomData })
    }
}

/// Whether the processor has AMX for bf16 and this process may use it. Asks for the permission, once.
pub fn detect() -> bool {
    static DETECTED: OnceLock<bool> = OnceLock::new();
    *DETECTED.get_or_init(|| processor_has_tiles() && system_saves_tiles() && request_permission())
}

/// CPUID leaf 7: EDX bit 22 is AMX-BF16, bit 24 is AMX-TILE.
fn processor_has_tiles() -> bool {
    const AMX: u32 = 1 << 22 | 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & AMX == AMX
}

/// CPUID leaf 1, ECX bit 27: XGETBV may be used; XCR0 bits 17 and 18: tile state is saved at context switches.
fn system_saves_tiles() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const TILES: u32 = 1 << 17 | 1 << 18;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let (low, _high): (u32, u32);
    // SAFETY: XGETBV exists where OSXSAVE is set; it reads register 0 into eax and edx.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _high, options(nomem, nostack)) };
    low & TILES == TILES
}

/// arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA): Linux lends tile data only to processes that ask.
fn request_permission() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let result: i64;
    // SAFETY: a system call that touches no memory of ours; rcx and r11 are what the instruction clobbers.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result == 0
}

/// Palette 1; eight tiles of 16 rows of 64 bytes.
#[repr(align(64))]
#[allow(dead_code, reason = "the processor reads it")]
struct Configuration([u8; 64]);

const CONFIGURATION: Configuration = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        // Bytes per row are 16-bit numbers from byte 16 on, rows are bytes from byte 48 on.
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = SIDE as u8;
        tile += 1;
    }
    Configuration(bytes)
};

// The compiler itself never uses tile registers, so none need be named as clobbered.
impl TileRegisters for Hardware {
    type State = ();

    fn configure() {
        // SAFETY: a value of the kernel exists only where detect() found AMX; the operand is 64 readable bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIGURATION, options(nostack, readonly)) };
    }

    fn release() {
        // SAFETY: as above; tile registers hold nothing that is still needed.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }

    #[inline(always)]
    unsafe fn zero<const T: usize>((): &mut ()) {
        // SAFETY: configured by the caller's word.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, nomem)) };
    }

    #[inline(always)]
    unsafe fn load<const T: usize>((): &mut (), from: *const f32, stride: usize) {
        // SAFETY: configured, and 16 rows readable, by the caller's word.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {stride}]", t = const T, from = in(reg) from, stride = in(reg) stride,
                options(nostack, readonly));
        }
    }

    #[inline(always)]
    unsafe fn dot<const C: usize, const A: usize, const B: usize>((): &mut ()) {
        // SAFETY: configured by the caller's word.
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B, options(nostack, nomem));
        }
    }

    #[inline(always)]
    unsafe fn store<const T: usize>((): &mut (), to: *mut f32, stride: usize) {
        // SAFETY: configured, and 16 rows writable, by the caller's word.
        unsafe {
            asm!("tilestored [{to} + {stride}], tmm{t}", t = const T, to = in(reg) to, stride = in(reg) stride,
                options(nostack));
        }
    }
}

/// Whether the processor's registers compute what the emulation does; asked once, and only where [`detect`] is true.
pub fn hardware_agrees() -> bool {
    static AGREES: OnceLock<bool> = OnceLock::new();
    *AGREES.get_or_init(|| detect() && products_agree())
}

/// Two blocks of pairs of small integers: below 2^7 each is a bf16, and 64 products below 2^24 sum exactly.
fn products_agree() -> bool {
    const UNITS: usize = 2 * SIDE * BLOCK;
    let value = |i: usize| super::super::simd::bf16_bits((i * 37 % 251) as f32 - 125.0);
    let words = |salt: usize| -> Vec<f32> {
        (0..UNITS).map(|i| f32::from_bits(value(2 * i + salt) | value(2 * i + 1 + salt) << 16)).collect()
    };
    let (rows, columns) = (words(0), words(89));
    let columns = Units { start: columns.as_ptr(), stride: BLOCK };
    let sides = Sides { blocks: 2, rows: rows.as_ptr(), columns };
    let (mut emulated, mut hardware) = ([3.0; BLOCK * BLOCK], [3.0; BLOCK * BLOCK]);
    // SAFETY: both panels hold two blocks; the registers are configured for the hardware's turn.
    unsafe {
        multiply::<Emulated>(sides, true, emulated.as_mut_ptr(), BLOCK);
        Hardware::configure();
        multiply::<Hardware>(sides, true, hardware.as_mut_ptr(), BLOCK);
        Hardware::release();
    }
    emulated == hardware
}

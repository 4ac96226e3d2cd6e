// SPDX-License-Identifier: Apache-2.0
//
// MODEL J1: what a C library's functions on memory and strings do where they meet registers: memcpy,
// memcmp, memchr, strlen and their kin, in all the variants that glibc has for x86-64.

import Testing

@testable import X86Instructions

@Suite("Instructions of a C library") struct LibraryTests {
  /// One of each kind that glibc 2.36 has, as a disassembler prints it, and its bytes.
  private static let table: [(text: String, bytes: String)] = [
    ("movaps %xmm2,(%rax)", "0f2910"),
    ("movdqa -0x120(%rbp),%xmm2", "660f6f95e0feffff"),
    ("movdqu (%rsi),%xmm0", "f30f6f06"),
    ("movhpd 0x8(%rdi),%xmm1", "660f164f08"),
    ("movhps (%rax),%xmm0", "0f1600"),
    ("movntdq %xmm0,(%rdi)", "660fe707"),
    ("movntps %xmm1,0x10(%rdi)", "0f2b4f10"),
    ("movups %xmm0,0x18(%r10)", "410f114218"),
    ("paddq -0x50(%rbp),%xmm0", "660fd445b0"),
    ("palignr $0x1,-0x10(%rdi,%rdx,1),%xmm0", "660f3a0f4417f001"),
    ("pand (%rcx,%rsi,1),%xmm0", "660fdb0431"),
    ("pandn (%rcx,%rax,1),%xmm1", "660fdf0c01"),
    ("pcmpeqb 0x30(%rdi),%xmm1", "660f744f30"),
    ("pcmpeqd (%rdi),%xmm0", "660f7607"),
    ("pcmpistri $0x1a,(%rsi,%rdx,1),%xmm0", "660f3a6304161a"),
    ("pminub 0x10(%rax),%xmm4", "660fda6010"),
    ("pminud 0x50(%rax),%xmm0", "660f383b4050"),
    ("por 0x2890(%rsp,%r14,4),%xmm0", "66420feb84b490280000"),
    ("shufps $0x88,0x30(%rsp),%xmm0", "0fc644243088"),
    ("vmovaps %zmm2,(%rdi)", "62f17c482917"),
    ("vmovaps (%rax),%ymm4", "c5fc2820"),
    ("vmovdqa %ymm1,(%rdi)", "c5fd7f0f"),
    ("vmovdqa64 %ymm17,(%rdi)", "62e1fd287f0f"),
    ("vmovdqa64 0x1(%r11),%zmm6", "62d1fd486fb301000000"),
    ("vmovdqu (%rsi),%xmm2", "c5fa6f16"),
    ("vmovdqu (%rsi),%ymm1", "c5fe6f0e"),
    ("vmovdqu32 (%rsi),%ymm18{%k2}", "62e17e2a6f16"),
    ("vmovdqu64 %xmm16,(%rax)", "62e1fe087f00"),
    ("vmovdqu64 (%rsi),%ymm17", "62e1fe286f0e"),
    ("vmovdqu64 (%rcx),%zmm0", "62f1fe486f01"),
    ("vmovdqu8 (%rsi),%ymm18{%k2}", "62e17f2a6f16"),
    ("vmovdqu8 (%rax),%zmm4", "62f17f486f20"),
    ("vmovdqu8 (%rdi),%zmm1{%k1}{z}", "62f17fc96f0f"),
    ("vmovntdq %ymm16,(%rdi)", "62e17d28e707"),
    ("vmovntdq %zmm0,(%rdi)", "62f17d48e707"),
    ("vmovntdq %ymm0,(%rdi)", "c5fde707"),
    ("vmovups (%rsi),%zmm0", "62f17c481006"),
    ("vpbroadcastb (%rax),%zmm3", "62f27d487818"),
    ("vpcmpeqb (%rsi),%xmm0,%k1{%k2}", "62f37d0a3f0e00"),
    ("vpcmpeqb (%rdi),%ymm16,%k0", "62f37d203f0700"),
    ("vpcmpeqb (%rsi),%ymm17,%k1{%k2}", "62f375223f0e00"),
    ("vpcmpeqb (%rdi),%zmm16,%k0", "62f37d403f0700"),
    ("vpcmpeqb (%r11),%zmm3,%k6{%k1}", "62d165497433"),
    ("vpcmpeqb (%rdi),%xmm2,%xmm2", "c5e97417"),
    ("vpcmpeqb (%rdi),%ymm0,%ymm1", "c5fd740f"),
    ("vpcmpeqd (%rsi),%xmm0,%k1{%k2}", "62f37d0a1f0e00"),
    ("vpcmpeqd (%rdi),%ymm16,%k0", "62f37d201f0700"),
    ("vpcmpeqd (%rsi),%ymm17,%k1{%k2}", "62f375221f0e00"),
    ("vpcmpeqd (%rdi),%zmm16,%k0", "62f37d401f0700"),
    ("vpcmpeqd (%rsi),%xmm0,%xmm1", "c5f9760e"),
    ("vpcmpeqd (%rsi),%ymm0,%ymm1", "c5fd760e"),
    ("vpcmpneqb 0x60(%rax),%ymm16,%k1", "62f37d203f480304"),
    ("vpcmpneqd (%rdi),%ymm16,%k1", "62f37d201f0f04"),
    ("vpcmpneqd (%rdi),%ymm18,%k1{%k2}", "62f36d221f0f04"),
    ("vpcmpnequb (%rdi),%ymm17,%k1", "62f375203e0f04"),
    ("vpcmpnequb (%rdi),%ymm18,%k1{%k2}", "62f36d223e0f04"),
    ("vpminub 0x20(%rax),%ymm17,%ymm17", "62e17520da4801"),
    ("vpminub 0x140(%rax),%zmm17,%zmm18", "62e17540da5005"),
    ("vpminub 0x20(%rax),%ymm4,%ymm4", "c5ddda6020"),
    ("vpminud 0xa0(%rdi),%ymm17,%ymm18", "62e275203b5705"),
    ("vpminud 0x140(%rax),%zmm17,%zmm18", "62e275403b5005"),
    ("vpminud 0x21(%rdi),%ymm1,%ymm2", "c4e2753b5721"),
    ("vpternlogd $0xde,0x60(%rdi),%ymm17,%ymm20", "62e37520256703de"),
    ("vpxorq (%rdi),%ymm17,%ymm17", "62e1f520ef0f"),
  ]

  @Test("J1: each vector instruction of the C library's string functions is known")
  func known() throws {
    for row in Self.table {
      let digits = Array(row.bytes)
      let bytes = stride(from: 0, to: digits.count, by: 2).map {
        UInt8(String(digits[$0...$0 + 1]), radix: 16)!
      }
      let instruction = try Instruction.decode(bytes.span)
      #expect(instruction.length == bytes.count, "\(row.text)")
      #expect(instruction.needsVectors, "\(row.text)")
    }
  }
}

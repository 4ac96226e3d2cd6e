// SPDX-License-Identifier: Apache-2.0
//
// A buffer behind a descriptor (Linux: a DMA-buf): for IOAS_MAP_FILE, and for the self-tests'
// back door, which makes and revokes some.

import CLinuxABI
import IOMMU
import SystemPackage

/// The descriptor of a buffer. What is mapped of it stays when it is closed.
final class BufferFile: OpenFile {
  let name = "dmabuf"
  let number = DeviceNumber(major: 0, minor: 0)
  let buffer: RevocableMemory

  init(_ buffer: RevocableMemory) { self.buffer = buffer }

  /// Linux: `dma_buf_llseek`, by which a program learns the size of a buffer that it was handed.
  var seekableLength: UInt64? { buffer.byteCount }

  func checkMap(_ request: MapRequest) throws(IOMMUError) {
    throw IOMMUError(.invalidArgument, "the exporter of this buffer does not let it be mapped")
  }

  func close() {}
}

extension SelfTest {
  /// DMABUF_GET: returns a new buffer's descriptor. Its length is rounded up to pages, 512 at
  /// the most.
  func makeBuffer(_ cmd: iommu_test_cmd) throws(IOMMUError) -> Int {
    let length = (UInt64(cmd.dmabuf_get.length) + 4095) & ~4095
    guard length > 0, length <= 512 * 4096 else {
      throw IOMMUError(
        .invalidArgument, "a buffer has 1 to 512 pages, not \(hex(length)) bytes")
    }
    let file = BufferFile(try RevocableMemory(byteCount: length))
    let closeOnExec = cmd.dmabuf_get.open_flags & 0o2_000_000 != 0
    return Int(try caller.install(file, closeOnExec: closeOnExec))
  }

  /// DMABUF_REVOKE: empties all mappings of a buffer; and gives it again, where it says so.
  func revokeBuffer(_ cmd: iommu_test_cmd) throws(IOMMUError) {
    let descriptor = cmd.dmabuf_revoke.dmabuf_fd
    guard let file = try caller.openFile(descriptor: descriptor) as? BufferFile else {
      throw IOMMUError(.invalidArgument, "descriptor \(descriptor) is no DMA-buf")
    }
    file.buffer.revoke()
    if cmd.dmabuf_revoke.revoked == 0 { file.buffer.restore() }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// A device's memory where no carrier keeps it: bytes of this process, which the Swift API and
// tests reach by calls.

/// Device memory in this process. Thread-safe.
@safe
public final class LocalDeviceMemory: DeviceMemory {
  private struct State: Sendable {
    var isGiven = false
  }

  private let memory: LocalMemory
  private let state = RankedMutex(.deviceMemory, State())

  /// - Parameter byteCount: Rounded up to 4 KiB; not zero. Used as it is touched.
  /// - Throws: `EINVAL`, `ENOMEM`.
  public init(byteCount: UInt64) throws(IOMMUError) {
    memory = try LocalMemory(byteCount: byteCount)
  }

  public var byteCount: UInt64 { memory.byteCount }
  public var identity: MemoryIdentity { memory.identity }
  public var isGiven: Bool { state.withLock { $0.isGiven } }

  public func give() { state.withLock { $0.isGiven = true } }
  public func take() { state.withLock { $0.isGiven = false } }

  public func clear() {
    state.withLock { _ in
      unsafe memory.withUnsafeMutableBytes { bytes in
        // SAFETY: the memory's own bytes. Pages that nobody touched stay so.
        for page in stride(from: 0, to: bytes.count, by: 4096) {
          let page = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[page..<page + 4096])
          if unsafe page.contains(where: { $0 != 0 }) {
            unsafe page.initializeMemory(as: UInt8.self, repeating: 0)
          }
        }
      }
    }
  }

  public func read(at address: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Bool {
    unsafe access(address, buffer.count) { bytes in
      // SAFETY: `access` has cut the bytes to the buffer's count.
      unsafe buffer.copyMemory(from: UnsafeRawBufferPointer(bytes))
    }
  }

  public func write(at address: UInt64, from buffer: UnsafeRawBufferPointer) -> Bool {
    unsafe access(address, buffer.count) { bytes in
      // SAFETY: as in `read`.
      unsafe bytes.copyMemory(from: buffer)
    }
  }

  /// Runs `body` on a range where the memory is given and has it.
  private func access(
    _ address: UInt64, _ count: Int, _ body: (UnsafeMutableRawBufferPointer) -> Void
  ) -> Bool {
    state.withLock { state in
      guard state.isGiven, address <= byteCount, UInt64(count) <= byteCount - address else {
        return false
      }
      let first = Int(address)
      unsafe memory.withUnsafeMutableBytes { bytes in
        // SAFETY: checked above.
        unsafe body(UnsafeMutableRawBufferPointer(rebasing: bytes[first..<first + count]))
      }
      return true
    }
  }
}

/// Makes device memory in this process.
public final class LocalDeviceMemoryBacking: DeviceMemoryBacking {
  public init() {}

  public func makeMemory(
    at offset: UInt64, length: UInt64
  ) throws(IOMMUError) -> any DeviceMemory {
    try LocalDeviceMemory(byteCount: length)
  }
}

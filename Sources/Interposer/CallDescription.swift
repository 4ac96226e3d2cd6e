// SPDX-License-Identifier: Apache-2.0
//
// A call in words: its name as strace writes it, its arguments, its outcome.

import CSyscalls
import IOMMU
import LinuxABI

/// What a call was.
struct CallDescription: Sendable {
  /// `ioctl(IOMMU_IOAS_MAP)`, `pread64`.
  let name: String
  let fields: [(name: String, value: String)]

  init(_ call: SystemCall, _ file: (any OpenFile)?, _ caller: ClientCaller) {
    func number(_ index: Int) -> String { "\(Int32(truncatingIfNeeded: call[index]))" }
    var fields: [(name: String, value: String)] = []
    switch call.number {
    case CSYS_NR_ioctl:
      let command = UInt32(truncatingIfNeeded: call[1])
      fields = [("fd", number(0))]
      if let file = file as? any DescribesCalls {
        let words = file.describe(command, argument: call[2], by: caller)
        name = "ioctl(\(words.name))"
        fields += words.fields
      } else {
        name = "ioctl(\(hex(command)))"
        fields.append(("argument", hex(call[2])))
      }
    case CSYS_NR_mmap:
      name = "mmap"
      fields = [("fd", number(4)), ("offset", hex(call[5])), ("length", hex(call[1]))]
    case CSYS_NR_pread64, CSYS_NR_pwrite64:
      name = call.number == CSYS_NR_pread64 ? "pread" : "pwrite"
      fields = [("fd", number(0)), ("offset", hex(call[3])), ("length", "\(call[2])")]
    case CSYS_NR_open, CSYS_NR_openat, CSYS_NR_openat2, CSYS_NR_creat:
      name = "open"
    case CSYS_NR_access, CSYS_NR_faccessat, CSYS_NR_faccessat2:
      name = "access"
    // The record names the file that was opened.
    default:
      if let name = Self.names[call.number] {
        self.name = name
        fields = [("fd", number(0))]
      } else {
        name = PathCall.row(call.number)?.name ?? "call \(call.number)"
      }
    }
    self.fields = fields
  }

  private static let names: [Int32: String] = [
    CSYS_NR_rt_sigaction: "sigaction", CSYS_NR_read: "read", CSYS_NR_write: "write",
    CSYS_NR_readv: "readv",
    CSYS_NR_writev: "writev", CSYS_NR_preadv: "preadv", CSYS_NR_pwritev: "pwritev",
    CSYS_NR_preadv2: "preadv2", CSYS_NR_pwritev2: "pwritev2", CSYS_NR_fstat: "fstat",
    CSYS_NR_newfstatat: "fstat", CSYS_NR_statx: "statx", CSYS_NR_lseek: "lseek",
    CSYS_NR_ftruncate: "ftruncate", CSYS_NR_fallocate: "fallocate", CSYS_NR_dup: "dup",
    CSYS_NR_fcntl: "fcntl",
  ]
}

extension CallRecord {
  /// `1234 iommufd: ioctl(IOMMU_IOAS_MAP) fd=3 length=0x1000 = 0`.
  var line: String {
    let arguments = description.fields.map { " \($0.name)=\($0.value)" }.joined()
    let on = file.map { "\($0.name): " } ?? ""
    return "\(process) \(on)\(description.name)\(arguments) = \(result)"
  }

  var result: String {
    switch answer {
    case .result(let value), .errand(let value, _): "\(value)"
    case .failure(let error):
      "-1 \(error.errno.symbol)" + (error.reason.isEmpty ? "" : " (\(error.reason))")
    case .goOn: "goes on to the kernel"
    }
  }
}

extension EventLog.Event {
  /// A line for a person.
  var line: String {
    switch self {
    case .map(let ioas, let iova, let length, let permissions):
      "map: ioas \(ioas) iova \(hex(iova.rawValue)) length \(hex(length)) \(permissions)"
    case .unmap(let ioas, let iova, let length):
      "unmap: ioas \(ioas) iova \(hex(iova.rawValue)) length \(hex(length))"
    case .invalidate(let iommu, let iova, let length):
      // Of everything the length is 2^64.
      "invalidate: \(iommu) iova \(hex(iova.rawValue)) "
        + (length == 0 ? "to the last" : "length \(hex(length))")
    case .fault(let source, let iova, let access, let reason):
      "DMA fault: \(source) iova \(hex(iova.rawValue)) \(access): \(reason)"
    case .pageRequest(let source, let iova, let access, let pages, let group):
      "page request: \(source) iova \(hex(iova.rawValue)) \(access) pages \(pages) "
        + "group \(group)"
    case .pageResponse(let source, let group, let answer):
      "page response: \(source) group \(group) \(answer)"
    case .injectedFault(let device, let what):
      "fault put in by iommu ctl: \(device): \(what)"
    case .note(let text): "note: \(text)"
    case .context(let requester, let text): "context: \(requester): \(text)"
    case .interrupt(let requester, let vector): "interrupt: \(requester) vector \(vector)"
    }
  }

  /// Whether it says why something failed.
  var isExplained: Bool {
    switch self {
    case .fault, .injectedFault: true
    default: false
    }
  }

  /// Its kind, for the trace's track.
  var kind: String { String(line.prefix { $0 != ":" }) }
}

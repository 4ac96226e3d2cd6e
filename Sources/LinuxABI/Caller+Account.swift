// SPDX-License-Identifier: Apache-2.0
//
// Which account the memory of a call is charged to (MODEL B6; Linux: `iopt_alloc_pages` and
// `iopt_map_common`).

import CLinuxABI
import IOMMU

extension IOMMUFile {
  /// The account that memory is charged to which a caller maps.
  /// - Throws: `EFAULT` where the caller is gone.
  func account(of caller: any Caller) throws(IOMMUError) -> MemoryAccount {
    let (owner, right) = try caller.memoryOwner()
    return owner.account(mode(for: right))
  }

  private func mode(for right: LockingRight) -> MemoryAccount.Mode {
    switch right {
    case .unlimited: .none
    case .limited where trustsCallers: .none
    case .limited, .relinquished: context.accountsPerProcess ? .process : .user
    }
  }
}

extension Command {
  /// IOAS_CHANGE_PROCESS: the caller answers from here on for what all files mapped in the
  /// context have pinned.
  @Sendable
  static func ioasChangeProcess(
    call: Invocation, cmd: inout iommu_ioas_change_process
  ) throws(IOMMUError) {
    try requireZero(cmd.__reserved, "__reserved")
    try call.context.changeOwner(to: call.caller.memoryOwner().owner)
  }
}

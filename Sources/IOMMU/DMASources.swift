// SPDX-License-Identifier: Apache-2.0
//
// Whose DMA it is that carries a requester id and a PASID, in the words of its user: a slice by
// its name, a PASID by its virtual number (MODEL E4).

/// Who has which PASID of which requester. Thread-safe; calls nothing.
///
/// For what is reported of DMA. What the bus carries is the parent's requester id and a physical
/// PASID: the first says nothing to the user of a slice, and the second is none of theirs.
public final class DMASources: Sendable {
  private struct Key: Hashable, Sendable {
    let requester: RequesterID
    let pasid: PASID
  }

  struct Holder: Hashable, Sendable {
    let name: String
    /// As its user calls the PASID; nil for a slice's default one, which has no other name.
    let virtual: PASID?
  }

  private struct State: Sendable {
    /// Several where slices of one device share a PASID.
    var holders: [Key: [Holder]] = [:]
    /// Requesters that have, or had, a PASID that its user calls otherwise.
    var translating: Set<RequesterID> = []
  }

  private let state = Guarded(State())

  /// Nobody has a PASID yet.
  public init() {}

  func enter(_ holder: Holder, _ requester: RequesterID, _ pasid: PASID) {
    state.withLock { state in
      state.holders[Key(requester: requester, pasid: pasid), default: []].append(holder)
      if holder.virtual != pasid { state.translating.insert(requester) }
    }
  }

  func leave(_ holder: Holder, _ requester: RequesterID, _ pasid: PASID) {
    state.withLock { state in
      let key = Key(requester: requester, pasid: pasid)
      guard var holders = state.holders[key], let index = holders.firstIndex(of: holder) else {
        return
      }
      holders.remove(at: index)
      state.holders[key] = holders.isEmpty ? nil : holders
    }
  }

  /// Who has a PASID, for a sentence that names the requester elsewhere: `PASID 5`, or, of a
  /// slice, its name and the PASID as its user calls it.
  public func holder(of pasid: PASID, at requester: RequesterID) -> String {
    let (holders, translates) = find(requester, pasid)
    if holders.isEmpty {
      return translates ? "unattached PASID" : "PASID \(pasid.rawValue)"
    }
    return holders.map { $0.words(at: requester) }.joined(separator: " or ")
  }

  /// Whom DMA is from, for a sentence: the device; or the slice, and the device that it is of in
  /// parentheses; with the PASID that its user attached.
  public func source(_ requester: RequesterID, _ pasid: PASID?) -> String {
    guard let pasid else { return "\(requester)" }
    let (holders, _) = find(requester, pasid)
    let words = holder(of: pasid, at: requester)
    let isSlice = holders.contains { !$0.isWhole(requester) }
    return isSlice ? "\(words) (\(requester))" : "\(requester) \(words)"
  }

  private func find(
    _ requester: RequesterID, _ pasid: PASID
  ) -> (holders: [Holder], translates: Bool) {
    state.withLock {
      (
        $0.holders[Key(requester: requester, pasid: pasid)] ?? [],
        $0.translating.contains(requester)
      )
    }
  }
}

extension DMASources.Holder {
  /// Whether it is the device itself, not a slice of it.
  fileprivate func isWhole(_ requester: RequesterID) -> Bool { name == "\(requester)" }

  fileprivate func words(at requester: RequesterID) -> String {
    guard let virtual else { return name }
    let pasid = "PASID \(virtual.rawValue)"
    return isWhole(requester) ? pasid : "\(name) \(pasid)"
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// What of PASIDs is state to migrate: the virtual ones and what they are attached to, as plain
// values. Physical ones are allocated again where they are restored (MODEL E5).

import SystemPackage

/// The virtual PASIDs of a device, or of a VM's CPU. A plain value, to be kept in any form.
public struct SavedPASIDs: Hashable, Codable, Sendable {
  /// One PASID and what it leads to.
  public struct Entry: Hashable, Codable, Sendable {
    /// As the user names it; not 0.
    public var pasid: UInt32
    /// The page table, or in a VM's table what was mapped, as the saving context numbered it.
    public var target: UInt32

    public init(pasid: UInt32, target: UInt32) {
      self.pasid = pasid
      self.target = target
    }
  }

  /// By PASID.
  public var entries: [Entry]

  public init(entries: [Entry] = []) { self.entries = entries }
}

/// The part of a VM that is about PASIDs.
public struct SavedTranslation: Hashable, Codable, Sendable {
  public var isEnabled: Bool
  public var pasids: SavedPASIDs

  public init(isEnabled: Bool = false, pasids: SavedPASIDs = SavedPASIDs()) {
    self.isEnabled = isEnabled
    self.pasids = pasids
  }
}

extension SecurityContext {
  /// The PASIDs that the device is attached by.
  public var savedPASIDs: SavedPASIDs {
    SavedPASIDs(
      entries: object.group.attachments(of: object).map {
        SavedPASIDs.Entry(pasid: $0.pasid.rawValue, target: $0.table.id.rawValue)
      }.sorted { $0.pasid < $1.pasid })
  }

  /// Attaches a device by the PASIDs that another one had; the physical ones are new.
  /// - Parameter table: The page table of this context for one of the saving context.
  /// - Throws: `ENOENT` where there is none, and as `attach(_:to:)`. Then none is attached.
  public func restore(
    _ saved: SavedPASIDs, to table: (ObjectID) -> ObjectID?
  ) throws(IOMMUError) {
    var done: [PASID] = []
    do throws(IOMMUError) {
      for entry in saved.entries {
        guard let target = table(ObjectID(entry.target)) else {
          throw IOMMUError(
            .noSuchFileOrDirectory,
            "PASID \(entry.pasid) was attached to page table \(entry.target), and nothing is "
              + "there to attach it to instead")
        }
        let pasid = PASID(rawValue: entry.pasid)
        guard pasid.nonzero != nil else {
          throw IOMMUError(.invalidArgument, "PASID 0 stands for none and is not restored")
        }
        try attach(pasid, to: target)
        done.append(pasid)
      }
    } catch {
      for pasid in done { detach(pasid) }
      throw error
    }
  }
}

extension VirtualMachine {
  /// What its CPU translates.
  public var savedTranslation: SavedTranslation {
    translation.withLock { table in
      SavedTranslation(
        isEnabled: table.isEnabled,
        pasids: SavedPASIDs(
          entries: table.entries.map {
            SavedPASIDs.Entry(pasid: $0.key.rawValue, target: $0.value.target.rawValue)
          }.sorted { $0.pasid < $1.pasid }))
    }
  }

  /// Makes the translations of another VM, once the devices are attached again.
  /// - Parameter target: The context and the object in it for what was mapped.
  /// - Throws: `ENOENT` where there is none, and as `map(_:to:of:)`. Then none is mapped.
  public func restore(
    _ saved: SavedTranslation, to target: (ObjectID) -> (context: Context, object: ObjectID)?
  ) throws(IOMMUError) {
    var done: [PASID] = []
    do throws(IOMMUError) {
      for entry in saved.pasids.entries {
        guard let place = target(ObjectID(entry.target)) else {
          throw IOMMUError(
            .noSuchFileOrDirectory,
            "PASID \(entry.pasid) was translated for object \(entry.target), and nothing is "
              + "there instead")
        }
        let pasid = PASID(rawValue: entry.pasid)
        try map(pasid, to: place.object, of: place.context)
        done.append(pasid)
      }
      try setTranslatesPASIDs(saved.isEnabled)
    } catch {
      for pasid in done { try? unmap(pasid) }
      throw error
    }
  }
}

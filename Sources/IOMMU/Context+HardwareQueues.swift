// SPDX-License-Identifier: Apache-2.0
//
// Queues in guest memory that hardware reads by physical address: Linux's HW_QUEUE_ALLOC. Their
// memory is in one piece, and an unmap of it is refused for as long as the queue is there.

import PageTables
import SystemPackage

extension Context {
  /// Makes hardware take commands from a queue in guest memory.
  ///
  /// Linux: `IOMMU_HW_QUEUE_ALLOC`.
  /// - Parameters:
  ///   - type: `IOMMU_HW_QUEUE_TYPE_…`.
  ///   - index: The queue's number in its virtual IOMMU.
  ///   - base: First byte, in the address space below the virtual IOMMU.
  ///   - length: In bytes.
  /// - Throws: `EOPNOTSUPP` for type 0 or one that the virtual IOMMU does not have; `EINVAL` for
  ///   no bytes; `EOVERFLOW`; `ENOENT` for the virtual IOMMU or a byte that is not mapped;
  ///   `EPERM` where the mapping cannot be read; `EFAULT` where the memory is not in one piece;
  ///   `ENOMEM`, `ERANGE` for a length without measure; what the driver throws.
  public func allocateHardwareQueue(
    in virtualIOMMU: ObjectID, type: UInt32, index: UInt32, base: IOVA, length: UInt64
  ) throws(IOMMUError) -> ObjectID {
    guard type != 0 else {
      throw IOMMUError(.operationNotSupported, "a hardware queue has a type other than 0")
    }
    guard length > 0 else {
      throw IOMMUError(.invalidArgument, "a hardware queue of no bytes")
    }
    guard !base.rawValue.addingReportingOverflow(length - 1).overflow else {
      throw IOMMUError(.overflow, "IOVA \(base) + \(hex(length)) bytes passes the last address")
    }
    return try configuration.withLock { (configuration) throws(IOMMUError) in
      let owner = try self.virtualIOMMU(virtualIOMMU)
      guard owner.model.supportsHardwareQueue(type: type) else {
        throw IOMMUError(
          .operationNotSupported,
          "virtual IOMMU \(owner.id) has no hardware queues of type \(hex(type))")
      }
      return try insert(dependingOn: owner.id) { (id) throws(IOMMUError) in
        let (access, physical) = try makeAccess(
          to: base, length: length, in: owner.parent.addressSpace)
        do throws(IOMMUError) {
          try FailurePoint.pass(.driverObject)
          let model = try owner.model.makeHardwareQueue(
            HardwareQueueRequest(
              type: type, index: index, base: base, physical: physical, length: length))
          let predecessor = model.predecessor.flatMap {
            configuration.hardwareQueues[ObjectIdentifier($0)]
          }
          if let predecessor { addUser(of: predecessor) }
          configuration.hardwareQueues[ObjectIdentifier(model)] = id
          return .hardwareQueue(
            HardwareQueueObject(
              id: id, virtualIOMMU: owner, model: model, access: access,
              predecessor: predecessor))
        } catch {
          end(access)
          throw error
        }
      }
    }
  }

  /// Linux asks for an array of the pages' addresses and gets none of more than 2 GiB.
  private static let maximumPages: UInt64 = 1 << 28 - 1

  /// Pins the whole pages around a queue.
  /// - Returns: And where its first byte is in physical space.
  private func makeAccess(
    to base: IOVA, length: UInt64, in space: AddressSpace
  ) throws(IOMMUError) -> (QueueAccess, PhysicalAddress) {
    let mask = Pages.hostPage - 1
    let first = base.rawValue & ~mask
    let (padded, overflow) = length.addingReportingOverflow(base.rawValue - first + mask)
    guard !overflow else {
      throw IOMMUError(
        .outOfRange, "\(hex(length)) bytes from \(base) are more than whole pages can hold")
    }
    guard padded / Pages.hostPage <= Self.maximumPages else {
      throw IOMMUError(.noMemory, "a hardware queue of \(hex(length)) bytes is too long")
    }
    let access = try insertAccess(to: space)
    do throws(IOMMUError) {
      let runs = try space.pin(
        IOVA(first), length: padded & ~mask, for: .read, as: key(of: access), isLocked: true)
      for (left, right) in zip(runs, runs.dropFirst())
      where left.address.rawValue + left.length != right.address.rawValue {
        throw IOMMUError(
          .badAddress,
          "the memory of a hardware queue at IOVA \(base) is not in one piece: map it from one "
            + "huge page or one file")
      }
      return (access, PhysicalAddress(runs[0].address.rawValue + (base.rawValue - first)))
    } catch {
      end(access)
      throw error
    }
  }

  private func key(of access: QueueAccess) -> AccessPin.Key {
    AccessPin.Key(accessor: ObjectIdentifier(access), id: 0)
  }

  private func insertAccess(to space: AddressSpace) throws(IOMMUError) -> QueueAccess {
    try space.addAccessor(pinsMemory: true)
    do throws(IOMMUError) {
      return try objects.withLock { (objects) throws(IOMMUError) in
        let access = try objects.table.insert { id in
          let access = QueueAccess(id: id, space: space)
          return (.foreign(access), access)
        }
        objects.table.addUser(of: access.id)
        objects.table.addUser(of: space.id)
        return access
      }
    } catch {
      space.removeAccessor(ObjectIdentifier(space), pinsMemory: true)
      throw error
    }
  }

  /// Lets the memory go.
  private func end(_ access: QueueAccess) {
    access.space.removeAccessor(ObjectIdentifier(access), pinsMemory: true)
    objects.withLock { objects in
      objects.table.dropUser(of: access.space.id)
      objects.table.remove(access.id)
    }
  }

  func dismantle(_ queue: HardwareQueueObject, _ configuration: inout Configuration) {
    // The hardware first: it reads the memory.
    queue.model.destroy()
    configuration.hardwareQueues[ObjectIdentifier(queue.model)] = nil
    end(queue.access)
    if let predecessor = queue.predecessor { dropUser(of: predecessor) }
    dropUser(of: queue.virtualIOMMU.id)
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// A function in the hands of a user, in the way of its kind (MODEL D2): bound to a context by what
// the IOMMU tells apart, or given an accessor. Linux: vfio_iommufd_physical_… and _emulated_….

import IOMMU
import SystemPackage

/// How a function's DMA gets to memory (MODEL D2).
public enum DMARoute: Sendable {
  /// By an IOMMU: a physical device by its requester id, or a slice of one by a PASID besides.
  case iommu(any BindableDevice)
  /// Not at all: its driver reads, writes and pins.
  case accessor(AccessorBus)
}

/// A function that is bound to a context. Unbinds when it goes: then no DMA of it goes on, and no
/// PASID is its any more. Thread-safe.
struct FunctionBinding: ~Copyable, Sendable {
  private let function: PCIFunction
  private let kind: Kind

  private enum Kind: ~Copyable, Sendable {
    case routed(Binding)
    case emulated(Accessor)
  }

  /// Binds: blocked, or on no address space yet.
  /// - Parameter cookie: The user's own name for the device; an accessor has no use for one, as no
  ///   fault of it is reported.
  /// - Throws: What `Context.register` throws; for an accessor `EBADF`, `ENOMEM`.
  init(
    _ function: PCIFunction, to context: Context, cookie: UInt64? = nil
  ) throws(IOMMUError) {
    self.function = function
    switch function.route {
    case .iommu(let device): kind = .routed(try context.register(device, cookie: cookie))
    case .accessor(let bus): kind = .emulated(try bus.connect(to: context))
    }
  }

  deinit {
    function.allowedPASIDs.revokeAll()
    if case .accessor(let bus) = function.route { bus.disconnect() }
  }

  /// What it is bound to.
  var context: Context {
    switch kind {
    case .routed(let binding): binding.context
    case .emulated(let accessor): accessor.context
    }
  }

  /// Names the device, or its accessor, in the context.
  var id: ObjectID {
    switch kind {
    case .routed(let binding): binding.id
    case .emulated(let accessor): accessor.id
    }
  }

  /// Attaches the function and its group, or moves them, in one step.
  /// - Parameters:
  ///   - pasid: Whose DMA; nil for what the function does without one.
  ///   - target: A page table or an address space; of an accessor an address space only.
  /// - Returns: The page table; of an accessor the address space.
  /// - Throws: What `SecurityContext.attach` or `Accessor.attach` throws; `EOPNOTSUPP` for a PASID
  ///   of a function that no IOMMU routes.
  func attach(_ pasid: PASID?, to target: ObjectID) throws(IOMMUError) -> ObjectID {
    switch kind {
    case .routed(let binding):
      guard let pasid else { return try binding.group.attach(to: target) }
      let table = try binding.group.attachOrReplace(pasid, to: target)
      // 0 is no PASID: it stands for DMA without one.
      if pasid.rawValue != 0, let physical = binding.device.physicalPASID(for: pasid) {
        function.allowedPASIDs.allow(virtual: pasid, physical: physical)
      }
      return table
    case .emulated(let accessor):
      guard pasid == nil else { throw noPASIDs }
      try accessor.attach(to: target)
      return target
    }
  }

  private var noPASIDs: IOMMUError {
    IOMMUError(
      .operationNotSupported,
      "\(function.name) is a mediated device in software; attach it without a PASID")
  }

  /// The address space that the function is attached to; nil for none.
  func addressSpace(of pasid: PASID?) throws(IOMMUError) -> ObjectID? {
    switch kind {
    case .routed(let binding):
      try binding.context.attachedAddressSpace(of: binding.id, pasid: pasid)
    case .emulated(let accessor): pasid == nil ? accessor.addressSpace : nil
    }
  }

  /// Back to blocked, or off the address space. Nothing where it is not attached.
  func detach(_ pasid: PASID?) {
    switch kind {
    case .routed(let binding):
      guard let pasid else {
        binding.group.detach()
        return
      }
      function.allowedPASIDs.revoke(pasid)
      guard let portal = function.portal else {
        binding.group.detach(pasid)
        return
      }
      portal.whileDrained(of: pasid) { binding.group.detach(pasid) }
    case .emulated(let accessor):
      if pasid == nil { accessor.detach() }
    }
  }
}

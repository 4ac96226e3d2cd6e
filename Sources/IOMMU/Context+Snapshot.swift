// SPDX-License-Identifier: Apache-2.0
//
// Everything that a context holds, as text: what a test compares with what was there before a
// call that failed. Slow; nothing but tests asks for it.

import PageTables

extension Context {
  /// One line for each object, area, reserved range, pin, table entry and group; equal where
  /// nothing has changed. Consistent where no other thread changes the context meanwhile.
  package var snapshot: [String] {
    let (table, rest) = objects.withLock { objects in
      (
        objects.table,
        [
          "holders \(objects.holders)", "closed \(objects.isClosed)",
          "accounts per process \(accountsPerProcess)",
          "compatibility IOAS \(objects.compatibilityIOAS?.description ?? "none")",
        ]
      )
    }
    let automatic = configuration.withLock { configuration in
      configuration.automaticTables.filter { !$0.value.isEmpty }
        .map { "IOAS \($0.key): automatic tables \($0.value.map(\.id))" }
    }
    return rest + automatic.sorted()
      + table.ids.flatMap { id -> [String] in
        guard let object = table[id] else { return [] }
        return ["object \(id): \(object.kind), \(table.users(of: id)) users"] + lines(object)
      } + system.groups.map(\.snapshot)
      + ["physical space: \(system.memory.usedSlots) slots in use"]
  }

  private func lines(_ object: ContextObject) -> [String] {
    switch object {
    case .ioas(let space): space.snapshot
    case .hwpt(let table):
      ["  \(table.attributes), nested \(table.isNested)"]
        + (table.isNested
          ? [] : table.paging.map { table.addressSpace.translations(of: $0) } ?? [])
    case .device(let object):
      ["  \(object.name), cookie \(object.cookie.map(String.init) ?? "none")"]
    case .faultQueue(let queue):
      ["  \(queue.counts.waiting) groups to read, \(queue.counts.delivered) to answer"]
    case .virtualIOMMU(let object): ["  type \(hex(object.type)) on \(object.parent.id)"]
    case .virtualDevice(let object):
      [
        "  \(object.device.device.name) in \(object.virtualIOMMU.id) is \(hex(object.virtualID))"
      ]
    case .eventQueue(let queue): ["  \(queue.pending)"]
    case .hardwareQueue(let queue):
      ["  of \(queue.virtualIOMMU.id), after \(queue.predecessor?.description ?? "none")"]
    case .foreign: []
    }
  }
}

extension AddressSpace {
  fileprivate var snapshot: [String] {
    state.withLock { state in
      var lines = [
        "  alignment \(state.alignment), large pages \(state.largePages), "
          + "\(state.domains.count) tables, \(state.pinningAccessors) accessors that pin, "
          + "\(state.specials)"
      ]
      try? state.areas.visit { area in
        lines.append(
          "  area \(hex(area.first))...\(hex(area.last)) \(area.permissions): "
            + "\(hex(area.pages.address)) + \(hex(area.start)), \(area.pages.snapshot(in: memory))"
        )
      }
      lines += state.reserved.map { reserved in
        let owner = if case .domain = reserved.owner { "a table" } else { "\(reserved.owner)" }
        let (first, last) = (reserved.range.lowerBound, reserved.range.upperBound)
        return "  reserved \(hex(first))...\(hex(last)) for \(owner)"
      }.sorted()
      if let link {
        lines.append("  nested on IOAS \(link.parent.id), changes \(link.changes)")
      }
      lines += state.mappings.all.map { "  \($0)" }
      lines += state.allowed.map { "  allowed \($0)" }
      lines += state.accessPins.map { "  pin \($0.key.id): \($0.value.range)" }.sorted()
      return lines
    }
  }

  /// Where a table sends each of its pages that an area covers.
  fileprivate func translations(of domain: any PagingDomain) -> [String] {
    state.withLock { state in
      var lines: [String] = []
      let page = domain.geometry.pageSizes.smallest
      try? state.areas.visit { area in
        for iova in stride(from: area.first, to: area.last, by: Int(page)) {
          lines.append("  \(IOVA(iova)) -> \(memory.name(of: domain.translate(IOVA(iova))))")
        }
      }
      return lines
    }
  }
}

extension Pages {
  fileprivate func snapshot(in memory: PhysicalMemory) -> String {
    let (coverage, placed) = pinState
    let users = coverage.map {
      "\($0.users) of \(hex($0.range.lowerBound))..<\(hex($0.range.upperBound))"
    }
    return "pins \(users) of \(placed.map { memory.name(of: $0.physical) }), "
      + "\(hex(chargedBytes)) bytes charged"
  }
}

extension PhysicalMemory {
  /// What is at an address; its place in physical space says nothing.
  fileprivate func name(of address: PhysicalAddress?) -> String {
    guard let identity = address.flatMap({ identity(of: $0) }) else { return "nothing" }
    return "\(identity.space):\(identity.object) + \(hex(identity.offset))"
  }
}

extension DeviceGroup {
  fileprivate var snapshot: String {
    state.withLock { state in
      let attachments = state.attachments.map { slot, attachment in
        "PASID \(slot.pasid.map { "\($0.rawValue)" } ?? "none") of sub-group \(slot.subgroup) on "
          + "\(attachment.table.id) for \(attachment.devices.map(\.id))"
      }
      return "group \(id): \(state.members.map(\.device.name)), owned "
        + "\(state.owners.values.map(\.count).sorted()) times, \(attachments.sorted())"
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// What the DMA of each requester, and of each of its PASIDs, goes through, and their ports. A port
// is half a megabyte and programs can go through a million PASIDs: few ports are kept that nobody
// has.

import IOMMU

/// The contexts and ports of one IOMMU. Plain data; whoever holds it locks it, through a whole
/// switch.
struct RequesterTable: Sendable {
  /// Ports that are kept before any is let go: who comes again finds what it translated before.
  static let spare = 16

  /// They keep the page tables alive that ports go through.
  private var contexts: [SoftwareIOMMU.Source: DMAContext] = [:]
  /// Of those that did DMA: most PASIDs that are set are used by none.
  private var ports: [SoftwareIOMMU.Source: DMAPort] = [:]
  /// Who answers the page requests of a source's DMA.
  private var answerers: [SoftwareIOMMU.Source: PageRequestPort] = [:]
  /// Of devices that can do more than DMA.
  var features: [RequesterID: SoftwareIOMMU.DeviceFeatures] = [:]
  /// With how many ports it is worth looking for those that nobody has.
  private var mostPorts = RequesterTable.spare

  var contextCount: Int { contexts.count }
  var portCount: Int { ports.count }

  /// Sends a source through a context from now on, in one step; waits for its port.
  /// - Parameter requests: Who answers its page requests.
  mutating func set(
    _ source: SoftwareIOMMU.Source, to context: DMAContext, requests: PageRequestPort? = nil
  ) {
    let old = move(source, to: context)
    answerers[source] = requests
    // A PASID that was detached is as one that was never set.
    if source.pasid != nil, Self.hasTable(old), case .blocked = context { remove(source) }
  }

  /// Whether a device's PASIDs are the user's, or are to be, and the host's as well: hardware has
  /// one table of them for each device.
  func conflict(_ source: SoftwareIOMMU.Source, with context: DMAContext) -> PASIDConflict? {
    if source.pasid != nil {
      guard Self.hasTable(context), hasPASIDs(contexts[source.device]) else { return nil }
      return .userHasPASIDs
    }
    guard hasPASIDs(context) else { return nil }
    let isInUse = contexts.contains {
      $0.key.pasid != nil && $0.key.requester == source.requester && Self.hasTable($0.value)
    }
    return isInUse ? .hostHasPASIDs : nil
  }

  /// Blocks a source, of which nothing is kept then. Who still has its port stays blocked.
  mutating func forget(_ source: SoftwareIOMMU.Source) {
    move(source, to: .blocked)
    remove(source)
  }

  /// - Returns: What the source went through before.
  @discardableResult
  private mutating func move(
    _ source: SoftwareIOMMU.Source, to context: DMAContext
  ) -> DMAContext? {
    let old = contexts.updateValue(context, forKey: source)
    if let channel = ports[source]?.channel { Self.move(channel, of: source, old, to: context) }
    if source.pasid == nil { moveHeirs(of: source.requester, old, to: context) }
    return old
  }

  /// Those of a device's PASIDs that have no context of their own go the way of the device.
  private func moveHeirs(
    of requester: RequesterID, _ old: DMAContext?, to context: DMAContext
  ) {
    let (had, has) = (hasPASIDs(old), hasPASIDs(context))
    guard had || has else { return }
    for (heir, port) in ports
    where heir.requester == requester && heir.pasid != nil && contexts[heir] == nil {
      Self.move(
        port.channel, of: heir, had ? old : nil, to: has ? context : .blocked)
    }
  }

  private static func move(
    _ channel: PortChannel, of source: SoftwareIOMMU.Source, _ old: DMAContext?,
    to context: DMAContext
  ) {
    // Unmaps in the new table reach the port before it first walks there, and those in the
    // old one until it has left.
    enter(context, channel, of: source)
    channel.wait()
    leave(old, channel)
  }

  /// What a source goes through: its own context, or for a PASID without one that of its device,
  /// where that has the PASIDs too (MODEL B9).
  private func effective(_ source: SoftwareIOMMU.Source) -> DMAContext? {
    if let own = contexts[source] { return own }
    guard source.pasid != nil, let device = contexts[source.device], hasPASIDs(device) else {
      return nil
    }
    return device
  }

  private func hasPASIDs(_ context: DMAContext?) -> Bool {
    guard case .nested(let domain)? = context else { return false }
    return (domain as? any SoftwareNestedDomain)?.hasPASIDs ?? false
  }

  private mutating func remove(_ source: SoftwareIOMMU.Source) {
    contexts[source] = nil
    answerers[source] = nil
    if isUnused(source) {
      ports[source] = nil
    } else if let channel = ports[source]?.channel, let inherited = effective(source) {
      Self.enter(inherited, channel, of: source)
    }
  }

  /// What can be done about an access that missed.
  func resolve(_ source: SoftwareIOMMU.Source) -> MissResolution {
    var resolution = MissResolution()
    if case .paging(let domain)? = contexts[source], let domain = domain as? any SoftwareDomain,
      domain.recoversMisses
    {
      resolution.table = domain
    }
    guard let features = features[source.requester], features.pageRequests else {
      return resolution
    }
    resolution.features = features
    let isHeir = contexts[source] == nil && effective(source) != nil
    if let port = answerers[isHeir ? source.device : source] {
      resolution.answerer = .user(port)
    } else if case .shared(let domain)? = contexts[source], let table = domain as? ProcessTable
    {
      resolution.answerer = .process(table)
    }
    return resolution
  }

  /// A source's port; while anybody has it, the same one each time.
  mutating func port(_ source: SoftwareIOMMU.Source, make: () -> DMAPort) -> DMAPort {
    if let port = ports[source] { return port }
    if ports.count >= mostPorts { dropUnused() }
    let port = make()
    if let context = effective(source) { Self.enter(context, port.channel, of: source) }
    ports[source] = port
    return port
  }

  /// Lets go of the ports that nobody has. What it costs is shared by as many that were made.
  private mutating func dropUnused() {
    for source in Array(ports.keys) where isUnused(source) {
      if let channel = ports[source]?.channel { Self.leave(effective(source), channel) }
      ports[source] = nil
    }
    mostPorts = 2 * ports.count + Self.spare
  }

  /// Whether nobody but the table has a source's port. Nobody can come to have it meanwhile but by
  /// the table.
  private mutating func isUnused(_ source: SoftwareIOMMU.Source) -> Bool {
    guard let index = ports.index(forKey: source) else { return true }
    return isKnownUniquelyReferenced(&ports.values[index])
  }

  private static func hasTable(_ context: DMAContext?) -> Bool {
    switch context {
    case .paging?, .nested?, .shared?: true
    case .host?, .blocked?, nil: false
    }
  }

  /// Sends a port through a context that fits it.
  private static func enter(
    _ context: DMAContext, _ channel: PortChannel, of source: SoftwareIOMMU.Source
  ) {
    switch context {
    case .host: channel.post(.host)
    case .blocked: channel.post(.blocked)
    case .paging(let domain):
      guard let domain = domain as? any SoftwareDomain else { return channel.post(.blocked) }
      domain.attach(channel)
      channel.post(domain.portContext)
    case .nested(let domain):
      guard let domain = domain as? any SoftwareNestedDomain else {
        return channel.post(.blocked)
      }
      domain.attach(channel, of: source)
      channel.post(domain.portContext, hasATS: domain.enablesATS)
    case .shared(let domain):
      guard let table = domain as? ProcessTable else { return channel.post(.blocked) }
      channel.post(.process(ProcessRoot(table)))
    }
  }

  /// The port goes through the context no more.
  private static func leave(_ context: DMAContext?, _ channel: PortChannel) {
    switch context {
    case .paging(let old)?: (old as? any SoftwareDomain)?.detach(channel)
    case .nested(let old)?: (old as? any SoftwareNestedDomain)?.detach(channel)
    case .host?, .blocked?, .shared?, nil: return
    }
  }
}

/// Why a device cannot have a context.
enum PASIDConflict: Sendable {
  /// A PASID's, for the device is on a user's table of PASIDs.
  case userHasPASIDs
  /// A user's table of PASIDs, for some of them have contexts.
  case hostHasPASIDs
}

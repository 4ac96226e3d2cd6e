// SPDX-License-Identifier: Apache-2.0
//
// MSI and MSI-X: how the user sets their vectors up, and how the device raises them. What the host's
// kernel does with mask bits and messages on the way is done here. Facts: Linux 6.12,
// vfio_pci_intrs.c and drivers/pci/msi.

import IOMMU
import SystemPackage

/// MSI's messages, one after the other.
struct MessageBlock: Sendable {
  let first: InterruptMessage
  /// Of the vectors that were set up.
  let slots: [MessageSlot]
  /// Messages in it: the vectors, rounded up to a power of two.
  let count: Int

  /// A device puts the number into the lowest bits of the data.
  func message(_ number: Int) -> InterruptMessage {
    InterruptMessage(address: first.address, data: first.data | UInt32(number))
  }
}

/// What a message of MSI signals, which changes while the message stays.
final class MessageSlot: EventSignal {
  private let target = Guarded<(any EventSignal)?>(nil)

  func set(_ signal: (any EventSignal)?) { target.withLock { $0 = signal } }

  // Under the lock, so that nothing is signalled after `set`. It never blocks.
  func signal() { target.withLock { $0?.signal() } }
}

extension InterruptVectors {
  // MARK: The device

  /// Raises a message-signalled interrupt: by MSI the message that the vector comes to with as many
  /// as there are.
  func raise(_ vector: Int) {
    guard vector >= 0 else { return }
    state.withLock { state in
      switch state.mode {
      case .msix: raiseEntry(vector, &state)
      case .msi: raiseMessage(vector, &state)
      case .none, .line: break
      }
    }
  }

  private func raiseMessage(_ vector: Int, _ state: inout State) {
    let (control, masks) = config.messages
    guard control.isEnabled, let block = state.block else { return }
    let number = vector & (1 << Int(control.used) - 1)
    guard masks & 1 << UInt32(number) == 0 else {
      state.pending.insert(number)
      showPending(state)
      return
    }
    send(block.message(number))
  }

  /// Raises what is pending and masked no more.
  func raisePending() { state.withLock { raisePending(&$0) } }

  private func raisePending(_ state: inout State) {
    let (control, masks) = config.messages
    for vector in state.pending.sorted() {
      var message: InterruptMessage?
      switch state.mode {
      case .msix:
        guard state.table.indices.contains(vector), !state.table[vector].isMasked else {
          continue
        }
        message = state.table[vector].message
      case .msi:
        guard control.isEnabled, vector < 1 << Int(control.used),
          masks & 1 << UInt32(vector) == 0
        else { continue }
        message = state.block?.message(vector)
      case .none, .line: return
      }
      state.pending.remove(vector)
      if let message { send(message) }
    }
    showPending(state)
  }

  /// The user wrote the MSI capability.
  func followMessageControl() {
    guard counts.msi > 0 else { return }
    state.withLock { state in
      guard state.mode == .msi else { return }
      raisePending(&state)
    }
  }

  /// MSI's pending bits are in configuration space.
  private func showPending(_ state: State) {
    guard state.mode == .msi else { return }
    config.setMessages(pending: state.pending.reduce(0) { $0 | 1 << UInt32($1 & 31) })
  }

  /// Vectors that were raised while masked, in order.
  var pendingVectors: [Int] { state.withLock { $0.pending.sorted() } }

  /// Takes pending vectors over from a state that was moved here.
  func setPending(_ vectors: Set<Int>) {
    state.withLock { state in
      state.pending = vectors
      showPending(state)
    }
  }

  // MARK: The user

  func triggerMessages(
    _ state: inout State, _ mode: Mode, start: Int, count: Int, _ arguments: Arguments
  ) throws(IOMMUError) {
    if case .none = arguments, state.mode == mode, count == 0 {
      disableMessages(&state)
      return
    }
    guard state.mode == mode || state.mode == .none else { throw otherKindInUse(state.mode) }
    let limit = mode == .msi ? counts.msi : counts.msix
    guard start >= 0, count >= 0, start <= limit, count <= limit - start else {
      throw IOMMUError(.invalidArgument, "there are \(limit) vectors of this kind")
    }
    switch arguments {
    case .events(let events):
      let wasOff = state.mode == .none
      if wasOff {
        guard start + count > 0 else {
          throw IOMMUError(
            .outOfRange, "interrupts cannot be switched on with no vector at all")
        }
        try enableMessages(&state, mode, vectors: start + count)
      }
      do throws(IOMMUError) {
        try arm(&state, start: start, events)
      } catch {
        if wasOff { disableMessages(&state) }
        throw error
      }
    case .none:
      guard state.mode == mode else { throw notInUse(mode) }
      for vector in start..<start + count { state.vectors[vector]?.signal.signal() }
    case .booleans(let flags):
      guard state.mode == mode else { throw notInUse(mode) }
      for (vector, flag) in zip(start..., flags) where flag {
        state.vectors[vector]?.signal.signal()
      }
    }
  }

  /// Switches one kind on, with all of its vectors masked. Linux: `pci_alloc_irq_vectors`.
  /// - Throws: `ENOSPC` where the host has no messages left.
  private func enableMessages(
    _ state: inout State, _ mode: Mode, vectors: Int
  ) throws(IOMMUError) {
    guard mode == .msi else {
      state.mode = mode
      for vector in state.table.indices { state.table[vector].isMasked = true }
      config.setMSIXEnabled(true)
      return
    }
    let slots = (0..<vectors).map { _ in MessageSlot() }
    let log2 = vectors == 1 ? 0 : Int.bitWidth - (vectors - 1).leadingZeroBitCount
    var signals: [(any EventSignal)?] = slots
    signals += Array(repeating: nil, count: 1 << log2 - vectors)
    state.block = MessageBlock(
      first: try upstream.allocateInterrupts(signals: signals), slots: slots, count: 1 << log2)
    state.mode = mode
    config.setMessages(log2: UInt16(log2))
    config.setMessages(masks: messageMasks(state), pending: 0)
  }

  /// What masks all messages but those that the user listens to.
  private func messageMasks(_ state: State) -> UInt32 {
    let all = counts.msi == 32 ? UInt32.max : 1 << UInt32(counts.msi) - 1
    return state.vectors.keys.reduce(all) { $0 & ~(1 << UInt32($1)) }
  }

  /// Gives vectors their events, in order. On an error those of this call are taken back.
  private func arm(
    _ state: inout State, start: Int, _ events: [Event]
  ) throws(IOMMUError) {
    for (vector, event) in zip(start..., events) {
      do throws(IOMMUError) {
        disarm(&state, vector)
        try arm(&state, vector, event)
      } catch {
        for vector in start...vector { disarm(&state, vector) }
        throw error
      }
    }
  }

  private func arm(
    _ state: inout State, _ vector: Int, _ event: Event
  ) throws(IOMMUError) {
    if case .remove = event { return }
    if state.mode == .msi, vector >= state.block?.slots.count ?? 0 {
      throw IOMMUError(
        .invalidArgument,
        "MSI was switched on for \(state.block?.slots.count ?? 0) vectors, and gets no more of them"
          + " before it is switched off")
    }
    switch event {
    case .remove: break
    case .invalid(let error): throw error
    case .signal(let signal):
      if let block = state.block {
        block.slots[vector].set(signal)
        state.vectors[vector] = Vector(signal: signal, message: block.message(vector))
        mask(vector, false)
      } else {
        let message = try upstream.allocateInterrupt(signal: signal)
        state.vectors[vector] = Vector(signal: signal, message: message)
        state.table[vector] = TableEntry(message)
      }
      if state.pending.contains(vector) { raisePending(&state) }
    }
  }

  /// A vector signals nothing from now on. Linux: `free_irq`, which masks it.
  private func disarm(_ state: inout State, _ vector: Int) {
    guard let old = state.vectors.removeValue(forKey: vector) else { return }
    if let block = state.block {
      mask(vector, true)
      block.slots[vector].set(nil)
    } else {
      state.table[vector].isMasked = true
      upstream.freeInterrupt(old.message)
    }
  }

  private func mask(_ message: Int, _ isMasked: Bool) {
    let bit: UInt32 = 1 << UInt32(message)
    let masks = config.messages.masks
    config.setMessages(masks: isMasked ? masks | bit : masks & ~bit)
  }

  func disableMessages(_ state: inout State) {
    if let block = state.block {
      for slot in block.slots { slot.set(nil) }
      upstream.freeInterrupts(block.first, count: block.count)
      state.block = nil
      config.setMessages(masks: 0, pending: 0)
      config.setMessages(log2: nil)
    } else if state.mode == .msix {
      for (vector, old) in state.vectors {
        upstream.freeInterrupt(old.message)
        state.table[vector] = TableEntry()
      }
      for vector in state.table.indices { state.table[vector].isMasked = true }
      config.setMSIXEnabled(false)
    }
    state.vectors = [:]
    state.pending = []
    state.mode = .none
  }

  /// Nothing is pending any more, and what the device has of its messages is what the host's kernel
  /// knows. Linux: `pci_restore_msi_state`.
  func restoreMessages(_ state: inout State) {
    state.pending = []
    for vector in state.table.indices {
      state.table[vector] =
        state.block == nil
        ? state.vectors[vector].map { TableEntry($0.message) } ?? TableEntry() : TableEntry()
    }
    if let block = state.block {
      config.setMessages(log2: UInt16(block.count.trailingZeroBitCount))
      config.setMessages(masks: messageMasks(state), pending: 0)
    } else {
      config.setMessages(masks: 0, pending: 0)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// A second, slow walker for each family of formats, written from the specifications' own
// algorithms and sharing nothing with the module: what random entries are judged by.

@testable import PageTables

/// What a slow walk says: nil where the specification faults.
struct SlowResult: Equatable {
  var address: UInt64
  /// The entries that were changed, by address.
  var changed: [UInt64: UInt64] = [:]
}

/// An access of a slow walk.
struct SlowAccess {
  var read = false
  var write = false
  var execute = false
  var privileged = false

  init(_ access: Access) {
    read = access.permissions.contains(.read)
    write = access.permissions.contains(.write)
    execute = access.permissions.contains(.execute)
    privileged = access.isPrivileged
  }
}

/// Bits `high ... low` of a number.
func bits(_ value: UInt64, _ high: Int, _ low: Int) -> UInt64 {
  (value >> UInt64(low)) % (1 << UInt64(high - low + 1))
}

func bit(_ value: UInt64, _ index: Int) -> Bool { bits(value, index, index) == 1 }

/// RISC-V Privileged 10.3.2, with 11.1 and 12; `second`: 18.5.
func slowRISCV(
  _ words: [UInt64: UInt64], root: UInt64, levels: Int, second: Bool, address va: UInt64,
  _ access: SlowAccess, updates: Bool, memoryTypes: Bool, sum: Bool
) -> SlowResult? {
  let width = 12 + 9 * levels + (second ? 2 : 0)
  if second {
    if bits(va, 63, width) != 0 { return nil }
  } else {
    let top = bits(va, 63, width - 1)
    if top != 0, top != bits(.max, 63, width - 1) { return nil }
  }
  var table = root
  for i in stride(from: levels - 1, through: 0, by: -1) {
    let low = 12 + 9 * i
    let vpn = i == levels - 1 && second ? bits(va, low + 10, low) : bits(va, low + 8, low)
    let place = table + vpn * 8
    guard let pte = words[place] else { return nil }
    let (v, r, w, x, u) = (bit(pte, 0), bit(pte, 1), bit(pte, 2), bit(pte, 3), bit(pte, 4))
    if !v || !r && w { return nil }
    if bits(pte, 60, 54) != 0 { return nil }
    let pbmt = bits(pte, 62, 61)
    if pbmt == 3 || pbmt != 0 && !memoryTypes { return nil }
    let napot = bit(pte, 63)
    let ppn = bits(pte, 53, 10)
    if !r && !x {
      if u || bit(pte, 6) || bit(pte, 7) || napot || pbmt != 0 { return nil }
      table = ppn * 4096
      continue
    }
    if access.read && !r || access.write && !w || access.execute && !x { return nil }
    if second {
      if !u { return nil }
    } else if access.privileged {
      if u && (access.execute || !sum) { return nil }
    } else if !u {
      return nil
    }
    if i > 0 && ppn % (1 << UInt64(9 * i)) != 0 { return nil }
    if napot && (i > 0 || ppn % 16 != 8) { return nil }
    var changed = pte
    if !bit(pte, 6) { changed += 1 << 6 }
    if access.write && !bit(pte, 7) { changed += 1 << 7 }
    if changed != pte && !updates { return nil }
    let size: UInt64 = napot ? 1 << 16 : 1 << UInt64(low)
    let start = ppn * 4096 / size * size
    return SlowResult(
      address: start + va % size, changed: changed == pte ? [:] : [place: changed])
  }
  return nil
}

/// Intel SDM volume 3, 4.5 and 4.6; AMD64 APM volume 2, 5.3 where `amd`.
func slowX86(
  _ words: [UInt64: UInt64], root: UInt64, levels: Int, address va: UInt64,
  _ access: SlowAccess, writeProtect: Bool, noExecute: Bool, smep: Bool, physicalBits: Int,
  amd: Bool
) -> SlowResult? {
  let top = bits(va, 63, 9 * levels + 11)
  if top != 0, top != bits(.max, 63, 9 * levels + 11) { return nil }
  var table = root
  var (user, write, execute) = (true, true, true)
  var changed: [UInt64: UInt64] = [:]
  for level in stride(from: levels, through: 1, by: -1) {
    let low = 3 + 9 * level
    let place = table + bits(va, low + 8, low) * 8
    guard let entry = words[place], bit(entry, 0) else { return nil }
    let large = level > 1 && bit(entry, 7)
    if level >= 4 && large { return nil }
    if level >= 4 && amd && bit(entry, 8) { return nil }
    if physicalBits < 52 && bits(entry, 51, physicalBits) != 0 { return nil }
    if !noExecute && bit(entry, 63) { return nil }
    if large && bits(entry, low - 1, 13) != 0 { return nil }
    user = user && bit(entry, 2)
    write = write && bit(entry, 1)
    execute = execute && !bit(entry, 63)
    var used = entry
    if !bit(used, 5) { used += 1 << 5 }
    guard level == 1 || large else {
      if used != entry { changed[place] = used }
      table = bits(entry, 51, 12) * 4096
      continue
    }
    if access.privileged {
      if access.write && writeProtect && !write { return nil }
      if access.execute && (!execute || smep && user) { return nil }
    } else {
      if access.read || access.write || access.execute, !user { return nil }
      if access.write && !write || access.execute && !execute { return nil }
    }
    if access.write && !bit(used, 6) { used += 1 << 6 }
    if used != entry { changed[place] = used }
    let size: UInt64 = 1 << UInt64(low)
    return SlowResult(
      address: bits(entry, 51, 12) * 4096 / size * size + va % size, changed: changed)
  }
  return nil
}

/// DDI 0487 D8.2 to D8.5, stage 1 (EL1 and EL0) and stage 2 (with FEAT_XNX).
func slowArm(
  _ words: [UInt64: UInt64], root: UInt64, granule: Int, startLevel: Int, width: Int,
  upper: Bool, second: Bool, address va: UInt64, _ access: SlowAccess, ha: Bool, hd: Bool,
  affd: Bool, wxn: Bool, hpd: Bool, outputBits: Int
) -> SlowResult? {
  let top = bits(va, 63, width)
  if top != (upper ? bits(.max, 63, width) : 0) { return nil }
  let stride = granule - 3
  var table = root
  var (noUser, readOnly, noUserExecute, noPrivilegedExecute) = (false, false, false, false)
  for level in startLevel...3 {
    let low = granule + stride * (3 - level)
    let high = level == startLevel ? width - 1 : low + stride - 1
    let place = table + bits(va, high, low) * 8
    guard let entry = words[place], bit(entry, 0) else { return nil }
    let isTable = level < 3 && bit(entry, 1)
    if level == 3 && !bit(entry, 1) { return nil }
    if level < 3 && !isTable {
      let blocks: Set<Int> =
        granule == 12 ? [1, 2] : granule == 14 || outputBits < 52 ? [2] : [1, 2]
      if !blocks.contains(level) { return nil }
    }
    var output = bits(entry, 47, granule) << UInt64(granule)
    if granule == 16 && outputBits == 52 { output += bits(entry, 15, 12) << 48 }
    if outputBits < 48 && bits(entry, 47, outputBits) != 0 { return nil }
    if isTable {
      if !second && !hpd {
        noPrivilegedExecute = noPrivilegedExecute || bit(entry, 59)
        noUserExecute = noUserExecute || bit(entry, 60)
        noUser = noUser || bit(entry, 61)
        readOnly = readOnly || bit(entry, 62)
      }
      table = output
      continue
    }
    var used = entry
    if !bit(entry, 10) {
      if ha { used += 1 << 10 } else if !affd { return nil }
    }
    let managed = ha && hd && bit(entry, 51)
    if second {
      let writable = bit(entry, 7) || managed
      if access.read && !bit(entry, 6) || access.write && !writable { return nil }
      switch (bits(entry, 54, 53), access.privileged) {
      case (0, _), (1, false), (3, true): break
      default: if access.execute { return nil }
      }
      if access.write && !bit(entry, 7) { used += 1 << 7 }
    } else {
      let user = bit(entry, 6) && !noUser
      let writable = (!bit(entry, 7) || managed) && !readOnly
      let userWrite = user && writable
      if access.privileged {
        if access.write && !writable { return nil }
        if access.execute,
          bit(entry, 53) || noPrivilegedExecute || userWrite || wxn && writable
        {
          return nil
        }
      } else {
        if access.read && !user || access.write && !userWrite { return nil }
        if access.execute, bit(entry, 54) || noUserExecute || wxn && userWrite { return nil }
      }
      if access.write && bit(entry, 7) { used -= 1 << 7 }
    }
    var size = low
    if bit(entry, 52) {
      switch (granule, level) {
      case (12, 1), (12, 2), (12, 3): size += 4
      case (14, 3): size += 7
      case (14, 2), (16, 2), (16, 3): size += 5
      default: break
      }
    }
    let bytes: UInt64 = 1 << UInt64(size)
    let offset = va & (1 << UInt64(width) - 1)
    return SlowResult(
      address: output / bytes * bytes + offset % bytes,
      changed: used == entry ? [:] : [place: used])
  }
  return nil
}

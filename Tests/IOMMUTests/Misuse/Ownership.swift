// SPDX-License-Identifier: Apache-2.0
//
// MODEL C1: a binding is one value, and unbinding is its end. Compiled by MisuseTests, which
// expects each error that a comment names in the line below it, and no other.

import IOMMU

func unbind(_ binding: consuming Binding) {}

// Unbound is unbound.
// error: 'binding' used after consume
func afterwards(_ binding: consuming Binding) {
  unbind(binding)
  _ = binding.id
}

// Nor is it unbound twice.
// error: 'binding' consumed more than once
func twice(_ binding: consuming Binding) {
  unbind(binding)
  unbind(binding)
}

// Who was lent a binding does not end it.
// error: 'binding' is borrowed and cannot be consumed
func lent(_ binding: borrowing Binding) {
  unbind(binding)
}

// Nor keeps it.
final class Keeper {
  var binding: Binding?

  // error: 'binding' is borrowed and cannot be consumed
  func keep(_ binding: borrowing Binding) {
    self.binding = consume binding
  }
}

// Giving a binding away is seen in the code.
// error: 'binding' used after consume
func handedOver(_ binding: consuming Binding) -> ObjectID {
  let other = consume binding
  _ = binding.device
  return other.id
}

// The same goes for a share of another's device.
// error: 'shared' used after consume
func shareTwice(_ shared: consuming PASIDBinding) {
  let other = shared
  shared.detach(PASID(rawValue: 1))
  _ = other.id
}

//! The connections of one endpoint, by slot and generation.
//!
//! **What.** A slab whose handles are never valid twice.
//!
//! **Invariants.** A slot's generation changes when its connection is removed. Connections are boxed:
//! an empty slot costs a few words.
//!
//! **Never.** A walk over all slots on the way of a packet.
//!
//! **See** `endpoint.rs`.

use crate::conn_id::ConnId;

struct Slot<T> {
    generation: u32,
    value: Option<Box<T>>,
}

/// Values by handle.
pub(crate) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Slots<T> {
    pub(crate) fn new() -> Slots<T> {
        Slots { slots: Vec::new(), free: Vec::new(), len: 0 }
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The handle that the next `insert` will give.
    pub(crate) fn next_id(&self) -> ConnId {
        match self.free.last() {
            Some(&slot) => ConnId { slot, generation: self.slots[slot as usize].generation },
            None => ConnId { slot: self.slots.len() as u32, generation: 1 },
        }
    }

    pub(crate) fn insert(&mut self, value: Box<T>) -> ConnId {
        let id = self.next_id();
        match self.free.pop() {
            Some(slot) => self.slots[slot as usize].value = Some(value),
            None => self.slots.push(Slot { generation: id.generation, value: Some(value) }),
        }
        self.len += 1;
        id
    }

    pub(crate) fn get(&self, id: ConnId) -> Option<&T> {
        let slot = self.slots.get(id.slot as usize)?;
        if slot.generation == id.generation { slot.value.as_deref() } else { None }
    }

    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation == id.generation { slot.value.as_deref_mut() } else { None }
    }

    /// The value in a slot, whatever its generation.
    pub(crate) fn at_mut(&mut self, slot: u32) -> Option<(ConnId, &mut T)> {
        let entry = self.slots.get_mut(slot as usize)?;
        let id = ConnId { slot, generation: entry.generation };
        entry.value.as_deref_mut().map(|value| (id, value))
    }

    pub(crate) fn remove(&mut self, id: ConnId) -> Option<Box<T>> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1).max(1);
        self.free.push(id.slot);
        self.len -= 1;
        Some(value)
    }

    /// Every handle; for closing all of them.
    pub(crate) fn ids(&self) -> impl Iterator<Item = ConnId> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.value.is_some())
            .map(|(at, slot)| ConnId { slot: at as u32, generation: slot.generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_dies_with_its_value() {
        let mut slots = Slots::new();
        let a = slots.insert(Box::new('a'));
        let b = slots.insert(Box::new('b'));
        assert_eq!((slots.get(a), slots.get(b), slots.len()), (Some(&'a'), Some(&'b'), 2));
        assert_eq!(slots.remove(a).as_deref(), Some(&'a'));
        assert_eq!(slots.remove(a), None);
        let next = slots.next_id();
        let c = slots.insert(Box::new('c'));
        assert_eq!(c, next);
        assert_eq!(c.slot, a.slot, "the slot is used again");
        assert_eq!((slots.get(a), slots.get(c)), (None, Some(&'c')));
        assert_eq!(slots.get_mut(a), None);
        assert_eq!(slots.ids().collect::<Vec<_>>(), [c, b]);
        assert_eq!(slots.at_mut(c.slot).map(|(id, _)| id), Some(c));
        assert_eq!(slots.at_mut(99), None);
    }
}

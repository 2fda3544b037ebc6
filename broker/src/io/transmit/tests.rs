//! Refusals of the kernel, played by a closure: what is kept, what is dropped, what is counted.

use super::*;

const TO: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

fn queue() -> TransmitQueue {
    TransmitQueue::new(TransmitOptions::default())
}

fn push(queue: &mut TransmitQueue, bytes: usize, segment_bytes: Option<usize>, fill: u8) -> Pushed {
    queue.push(|buffer| {
        buffer[..bytes].fill(fill);
        Some(Transmit { bytes, segment_bytes, to: TO, from: None })
    })
}

/// First byte and length of each message offered.
fn offered(headers: &[libc::mmsghdr]) -> Vec<(u8, usize)> {
    headers
        .iter()
        .map(|header| {
            // SAFETY: prepare() points each header at one live iovec over the arena.
            unsafe {
                let iovec = *header.msg_hdr.msg_iov;
                (*iovec.iov_base.cast::<u8>(), iovec.iov_len)
            }
        })
        .collect()
}

fn os(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

#[test]
fn a_partial_send_goes_on_with_the_rest() {
    let mut queue = queue();
    for fill in 1..=5 {
        assert_eq!(push(&mut queue, 100, None, fill), Pushed::Added);
    }
    let mut seen = Vec::new();
    let flushed = queue.flush_with(false, |headers| {
        let take = headers.len().min(2);
        seen.extend(offered(&headers[..take]));
        Ok(take)
    });
    assert_eq!(flushed, Flushed { datagrams: 5, blocked: false });
    assert_eq!(seen, [(1, 100), (2, 100), (3, 100), (4, 100), (5, 100)]);
    assert!(queue.is_empty());
}

#[test]
fn a_full_socket_keeps_the_rest_in_order() {
    let mut queue = queue();
    for fill in 1..=3 {
        push(&mut queue, 10, None, fill);
    }
    let mut calls = 0;
    let flushed = queue.flush_with(false, |_| {
        calls += 1;
        if calls == 1 { Ok(1) } else { Err(os(libc::EAGAIN)) }
    });
    assert_eq!(flushed, Flushed { datagrams: 1, blocked: true });
    assert_eq!(calls, 2, "no busy loop");
    assert_eq!(queue.waiting(), 2);
    push(&mut queue, 10, None, 4);
    let mut seen = Vec::new();
    queue.flush_with(false, |headers| {
        seen.extend(offered(headers));
        Ok(headers.len())
    });
    assert_eq!(seen, [(2, 10), (3, 10), (4, 10)]);
    assert_eq!(queue.counters().blocked, 1);
}

#[test]
fn drops_are_counted_by_reason_and_do_not_stop_the_others() {
    type Counter = fn(&TransmitCounters) -> u64;
    let cases: [(i32, Counter); 6] = [
        (libc::EMSGSIZE, |counters| counters.dropped_too_big),
        (libc::ENOBUFS, |counters| counters.dropped_no_buffers),
        (libc::ECONNREFUSED, |counters| counters.dropped_unreachable),
        (libc::EHOSTUNREACH, |counters| counters.dropped_unreachable),
        (libc::EPERM, |counters| counters.dropped_unreachable),
        (libc::EINVAL, |counters| counters.dropped_other),
    ];
    for (code, counter) in cases {
        let mut queue = queue();
        push(&mut queue, 10, None, 1);
        push(&mut queue, 10, None, 2);
        let mut seen = Vec::new();
        let mut calls = 0;
        queue.flush_with(false, |headers| {
            calls += 1;
            if calls == 1 {
                return Err(os(code));
            }
            seen.extend(offered(headers));
            Ok(headers.len())
        });
        assert_eq!(seen, [(2, 10)], "{code}");
        assert_eq!(counter(&queue.counters()), 1, "{code}");
    }
}

#[test]
fn an_interrupted_call_is_made_again() {
    let mut queue = queue();
    push(&mut queue, 10, None, 1);
    let mut calls = 0;
    let flushed = queue.flush_with(false, |headers| {
        calls += 1;
        if calls == 1 { Err(os(libc::EINTR)) } else { Ok(headers.len()) }
    });
    assert_eq!(flushed.datagrams, 1);
}

#[test]
fn long_trains_are_cut_at_the_kernels_limit() {
    let mut queue = queue();
    push(&mut queue, 65 * 100 + 7, Some(100), 1);
    let mut seen = Vec::new();
    let flushed = queue.flush_with(false, |headers| {
        seen.extend(offered(headers));
        Ok(headers.len())
    });
    assert_eq!(seen, [(1, 6400), (1, 107)]);
    assert_eq!(flushed.datagrams, 66);
}

#[test]
fn a_device_without_offload_gets_single_datagrams() {
    let mut queue = queue();
    push(&mut queue, 50, None, 1);
    push(&mut queue, 250, Some(100), 2);
    let mut seen = Vec::new();
    let flushed = queue.flush_with(false, |headers| {
        if headers.iter().any(|header| header.msg_hdr.msg_controllen != 0) {
            // The kernel sends what precedes the train, and refuses the train when it comes first.
            return if headers[0].msg_hdr.msg_controllen == 0 {
                seen.extend(offered(&headers[..1]));
                Ok(1)
            } else {
                Err(os(libc::EIO))
            };
        }
        seen.extend(offered(headers));
        Ok(headers.len())
    });
    assert_eq!(seen, [(1, 50), (2, 100), (2, 100), (2, 50)]);
    assert_eq!(flushed.datagrams, 4);
    push(&mut queue, 250, Some(100), 3);
    assert_eq!(queue.waiting(), 3, "from now on trains are cut here");
}

#[test]
fn full_is_said_before_the_callback_runs() {
    let mut queue = TransmitQueue::new(TransmitOptions { arena_bytes: 0, messages: 0 });
    assert_eq!(push(&mut queue, TRAIN_BYTES_MAX, None, 1), Pushed::Added);
    assert_eq!(push(&mut queue, TRAIN_BYTES_MAX, None, 1), Pushed::Added);
    assert_eq!(queue.push(|_| panic!("there is no room")), Pushed::Full);
    queue.flush_with(false, |headers| Ok(headers.len()));
    assert_eq!(queue.push(|_| None), Pushed::Nothing);
    assert!(queue.has_room());
}

#[test]
fn no_allocation_for_the_queue_itself() {
    let mut queue = queue();
    let capacity = queue.entries.capacity();
    for _ in 0..10 {
        while push(&mut queue, 1, None, 1) == Pushed::Added {}
        queue.flush_with(false, |headers| Ok(headers.len()));
    }
    assert_eq!(queue.entries.capacity(), capacity);
}

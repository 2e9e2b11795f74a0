//! Transfers while everything is killed: each ends, and no money is lost or made.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use millrace_tests::{
    LONG, Services, commands, eventually_within,
    kafka::{Draft, Producer},
    services::{Service, new_id},
    transfers::{new_transfer, request_at},
};
use uuid::Uuid;

use crate::quick;

const LIMIT: Duration = Duration::from_secs(120);
const FUNDS_MINOR: i64 = 1_000;

#[test]
fn g11_money_is_conserved_while_services_are_killed() {
    let (accounts, transfers, kills, clients) = if *LONG { (1_000, 20_000, 60, 16) } else { (60, 800, 6, 8) };
    let deployment = quick();
    let mut services = Services::start(deployment.clone());
    let mut second = deployment.command_service("c2");
    let producer = Producer::new("murmur2_random");
    let mut ids: Vec<String> = (0..accounts).map(|_| new_id()).collect();
    for id in &ids {
        producer.send(&deployment.topic("commands"), &Draft::new(id, commands::open("Ada", "EUR")));
        producer.send(&deployment.topic("commands"), &Draft::new(id, commands::deposit(FUNDS_MINOR)));
    }
    // Some targets are not there.
    ids.extend((0..accounts / 20).map(|_| new_id()));
    let requested = AtomicUsize::new(0);
    let at = [&services.command, &second].map(Service::url);
    thread::scope(|scope| {
        for client in 0..clients {
            let (ids, requested, at) = (&ids, &requested, &at);
            scope.spawn(move || {
                while requested.fetch_add(1, Ordering::Relaxed) < transfers {
                    let [.., a, b, c, d] = Uuid::now_v7().into_bytes();
                    let pick = |high: u8, low: u8| &ids[usize::from(u16::from_be_bytes([high, low])) % ids.len()];
                    let (from, to) = (pick(a, b), pick(c, d));
                    if from == to {
                        continue;
                    }
                    let amount = 1 + i64::from(a) * 4;
                    let request = request_at(&at[client % 2], &new_transfer(), from, to, amount);
                    let answer = request.key(&new_transfer()).send_until_definite(LIMIT);
                    assert_eq!(answer.status, 201, "{answer:?}");
                }
            });
        }
        for kill in 0..kills {
            let due = transfers * (kill + 1) / (kills + 2);
            eventually_within(LIMIT, "load", || {
                let done = requested.load(Ordering::Relaxed);
                if done >= due { Ok(()) } else { Err(done.to_string()) }
            });
            let service = match kill % 5 {
                0 | 2 => &mut services.command,
                1 => &mut second,
                3 => &mut services.projector,
                _ => &mut services.query,
            };
            service.kill();
            service.launch();
            if kill % 2 == 1 {
                deployment.money_is_conserved_now();
            }
        }
    });
    for service in [&mut services.command, &mut second, &mut services.projector, &mut services.query] {
        service.wait_ready();
    }
    eventually_within(LIMIT, "end of all transfers", || {
        let ended = |told: &str| matches!(told, "completed" | "refused" | "compensated");
        let open = deployment.transfers().into_values().filter(|told| !ended(&told.status)).count();
        if open == 0 { Ok(()) } else { Err(format!("{open} are open")) }
    });
    let (told, sum) = deployment.money_is_where_transfers_say();
    let with = |status: &str| told.values().filter(|told| told.status == status).count();
    assert_eq!(sum, FUNDS_MINOR * accounts as i64, "{} transfers", told.len());
    assert!(told.len() > transfers / 2, "{}", told.len());
    for status in ["completed", "refused", "compensated"] {
        assert!(with(status) > 0, "none was {status}");
    }
    deployment.check_log();
    deployment.verify_all();
    deployment.verify_transfers();
}

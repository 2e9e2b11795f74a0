//! What a page of a list costs, whatever is asked for.

use std::{collections::BTreeSet, thread};

use millrace_tests::{
    Deployment, Services, commands, eventually,
    kafka::{Draft, Producer},
    services::new_id,
};
use serde_json::Value;

const ACCOUNTS: usize = 3_000;
/// One in so many has another currency.
const RARE: usize = 1_000;
/// Entries of indexes and views that are read for each item of a page, which counts as 50 items at least. Going over all
/// accounts would be more.
const READ_PER_ITEM: usize = 60;
const READ: &str = "millrace_query_list_entries_read_total";
const ITEMS: &str = "millrace_query_list_items_total";

#[test]
fn g16_what_is_read_for_a_page_is_bounded_whatever_the_filters_leave() {
    let services = Services::start(Deployment::new());
    let (topic, producer) = (services.deployment.topic("commands"), Producer::new("murmur2_random"));
    let ids: Vec<String> = (0..ACCOUNTS).map(|_| new_id()).collect();
    thread::scope(|scope| {
        // Each is a thousand, that begins with a rare one.
        for part in ids.chunks(RARE) {
            scope.spawn(|| {
                for (at, id) in part.iter().enumerate() {
                    producer.send(&topic, &Draft::new(id, commands::open("Ada", if at == 0 { "CHF" } else { "EUR" })));
                }
            });
        }
    });
    eventually("views of all accounts", || {
        let open = services.ask("/v1/bank-accounts/stats").send().json()["accounts"]["open"].clone();
        if open == ACCOUNTS { Ok(()) } else { Err(open.to_string()) }
    });
    let page = |query: &str, limit: usize, cursor: &str| -> Value {
        let before = [READ, ITEMS].map(|name| services.query.metric(name));
        let answer = services.ask(&format!("/v1/bank-accounts?limit={limit}{query}{cursor}")).send();
        assert_eq!(answer.status, 200, "{answer:?}");
        let [read, items] = [READ, ITEMS].map(|name| services.query.metric(name));
        let page = answer.json();
        let (read, items) = ((read - before[0]) as usize, (items - before[1]) as usize);
        assert_eq!(page["items"].as_array().map(Vec::len), Some(items), "{query}");
        // Of each item an entry of an index and a view, at least.
        let right = 2 * items..=READ_PER_ITEM * limit.max(50);
        assert!(right.contains(&read), "{read} entries were read for a page of {limit}, with {query}");
        page
    };
    for order in ["balance_minor", "-balance_minor", "-updated_at", "opened_at", "id", "-id"] {
        for filter in ["", "&status=closed", "&currency=CHF", "&owner=Ada", "&owner=Ada&currency=CHF", "&owner=Bob"] {
            for limit in [1, 50, 200] {
                let query = format!("&sort={order}{filter}");
                let first = page(&query, limit, "");
                if let Some(next) = first["next_cursor"].as_str() {
                    page(&query, limit, &format!("&cursor={next}"));
                }
            }
        }
    }
    // Short pages, or empty ones, lose nothing.
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = page("&currency=CHF&sort=-balance_minor", 2, &cursor);
        let items = page["items"].as_array().expect("items");
        found.extend(items.iter().map(|item| item["id"].as_str().expect("an id").to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let rare: BTreeSet<&String> = ids.iter().step_by(RARE).collect();
    assert_eq!((found.len(), found.iter().collect::<BTreeSet<_>>()), (rare.len(), rare));
}

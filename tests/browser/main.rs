//! The dashboard in a real browser: what people see of Millrace follows what happens, without a reload.

mod driver;

use std::collections::BTreeMap;

use driver::{Browser, DESKTOP, PHONE};
use millrace_tests::{
    Deployment, Services, eventually,
    kafka::{Draft, Producer},
    redis::Redis,
    services::new_id,
    wait::same,
};
use serde_json::json;

/// Text that would run if the page took it for more than text.
const HOSTILE: &str = "<img src=x onerror=\"document.title='owned'\"> ${7*7} \u{202e}Ada";

/// Waits until the page gets every change as it happens, and marks it: the mark is gone after a reload.
#[track_caller]
fn wait_live(browser: &Browser) {
    browser.wait_until("live connection", "document.querySelector('[data-connection]')?.dataset.connection === 'live'");
    browser.run("window.marked = true");
}

#[track_caller]
fn was_not_reloaded(browser: &Browser) {
    assert_eq!(browser.run("return window.marked"), json!(true), "the page was loaded anew");
}

#[track_caller]
fn open_in(services: &Services, id: &str, owner: &str, currency: &str) {
    services.accepted(id, "open", &json!({"owner": owner, "currency": currency}));
}

/// Fails when there is anything on the console but what a test provokes: Chromium tells every answer that is an error.
#[track_caller]
fn console_tells_only(browser: &Browser, provoked: &str) {
    let said = browser.console();
    let others: Vec<&String> = said.iter().filter(|said| !said.contains(provoked)).collect();
    assert!(others.is_empty(), "the console says {others:#?}");
}

/// Ids of the rows of the list, from top to bottom.
#[track_caller]
fn rows(browser: &Browser) -> Vec<String> {
    let rows = browser.run("return [...document.querySelectorAll('tr[data-id]')].map((row) => row.dataset.id)");
    rows.as_array().into_iter().flatten().filter_map(|id| id.as_str().map(str::to_owned)).collect()
}

#[track_caller]
fn wait_for_rows(browser: &Browser, expected: &[&String]) {
    eventually("right rows", || same(&rows(browser).iter().collect::<Vec<_>>(), &expected.to_vec()));
}

#[test]
fn g09_the_page_follows_what_happens() {
    let services = Services::start(Deployment::new());
    let browser = Browser::start();
    browser.open(&services.query.url());
    wait_live(&browser);

    // Totals, exact to the minor unit of each currency, and what happens now.
    let (euro, yen, dinar, closed) = (new_id(), new_id(), new_id(), new_id());
    for (id, owner, currency) in
        [(&euro, HOSTILE, "EUR"), (&yen, "Basil", "JPY"), (&dinar, "Basil", "BHD"), (&closed, "Basil", "EUR")]
    {
        open_in(&services, id, owner, currency);
    }
    services.deposit(&euro, 123_456);
    services.deposit(&yen, 5_000);
    services.deposit(&dinar, 1_234);
    services.accepted(&closed, "close", &json!({}));
    browser.wait_for_text("[data-currency=EUR]", |text| text.contains("1,234.56"));
    browser.wait_for_text("[data-currency=JPY]", |text| text.contains("5,000") && !text.contains("5,000.0"));
    browser.wait_for_text("[data-currency=BHD]", |text| text.contains("1.234"));
    browser.wait_for_text(".hero", |text| text.contains("Open accounts\n3") && text.contains("Closed accounts\n1"));
    browser.wait_for_text(".feed", |text| text.contains("Account closed") && text.contains(&closed));
    was_not_reloaded(&browser);

    // The list: rows change in place; filters, order and search.
    assert_eq!(browser.run(include_str!("parser.js")), json!([]));
    browser.click("nav a[href='#/accounts']");
    eventually("four rows", || same(&rows(&browser).len(), &4));
    assert_eq!(browser.run("return document.title"), json!("Accounts · Millrace"));
    services.deposit(&euro, 44);
    browser.wait_for_text(&format!("tr[data-id='{euro}']"), |text| text.contains("1,235.00") && text.contains(HOSTILE));
    browser.keys("#owner", "Basil\u{e007}");
    let mut of_basil = vec![&yen, &dinar, &closed];
    of_basil.sort();
    wait_for_rows(&browser, &of_basil);
    browser.run(
        "const s = document.querySelector('[name=status]'); s.value = 'closed'; s.dispatchEvent(new Event('change'))",
    );
    wait_for_rows(&browser, &[&closed]);
    browser
        .run("const s = document.querySelector('[name=status]'); s.value = ''; s.dispatchEvent(new Event('change'))");
    browser.run("const s = document.querySelector('[name=sort]'); s.value = '-balance_minor'; s.dispatchEvent(new Event('change'))");
    wait_for_rows(&browser, &[&yen, &dinar, &closed]);
    browser.keys("#id", "nobody\u{e007}");
    browser.wait_for_text("#id-said", |text| text == "There is no account nobody.");

    // Transfers, as they end.
    browser.click("nav a[href='#/transfers']");
    browser.wait_for_text(".card", |text| text.contains("No transfer is like that."));
    let arrived = services.transfer(&closed, &yen, 1)["id"].as_str().expect("an id").to_owned();
    browser.wait_for_text(&format!("tr[data-id='{arrived}']"), |text| {
        text.contains("refused") && text.contains("account-closed") && text.contains("€0.01")
    });
    browser.keys("#to", &format!("{dinar}\u{e007}"));
    wait_for_rows(&browser, &[]);
    browser.click("nav a[href='#/accounts']");
    eventually("list of accounts", || same(&rows(&browser).len(), &4));

    // An account as it is, and as it was.
    for _ in "nobody".chars() {
        browser.keys("#id", "\u{e003}");
    }
    browser.keys("#id", &format!("{euro}\u{e007}"));
    browser.wait_for_text(".account-head", |text| text.contains(&euro) && text.contains("1,235.00"));
    services.withdraw(&euro, 3_500);
    browser.wait_for_text(".account-head", |text| text.contains("1,200.00"));
    browser.wait_for_text("tr[data-sequence='4']", |text| text.contains("Money withdrawn") && text.contains("-€35.00"));
    browser.wait_for_text(".was", |text| text.contains("1,200.00"));
    // The slider by its keys: home is version 1, two to the right are version 3.
    browser.keys("#version", "\u{e011}");
    browser.wait_for_text(".was[data-version='1']", |text| text.contains("€0.00") && text.contains("Account opened"));
    browser.keys("#version", "\u{e014}\u{e014}");
    browser.wait_for_text(".was[data-version='3']", |text| text.contains("€1,235.00"));
    // It stays where it was put while the account goes on.
    services.deposit(&euro, 100);
    browser.wait_for_text(".account-head", |text| text.contains("1,201.00"));
    browser.wait_for_text(".was[data-version='3']", |text| text.contains("€1,235.00"));
    browser.run("window.scrollTo(0, 0)");
    browser.keep_picture("account-desktop");

    was_not_reloaded(&browser);
    assert_ne!(browser.run("return document.title"), json!("owned"));
    // Searching for nobody was answered by 404, which Chromium tells; nothing else is there to be told.
    console_tells_only(&browser, "/bank-accounts/nobody");
}

#[test]
fn g09_the_page_says_that_the_connection_is_lost_and_recovers() {
    let mut services = Services::start(Deployment::new());
    let (before, meanwhile) = (services.open("Ada"), new_id());
    services.deposit(&before, 1_000);
    let browser = Browser::start();
    browser.open(&services.query.url());
    wait_live(&browser);
    browser.wait_for_text("[data-currency=EUR]", |text| text.contains("€10.00"));
    browser.console_is_empty();

    services.query.kill();
    browser.wait_for_text(".notices", |text| text.contains("No connection to query-service. The figures are of"));
    browser.wait_for_text(".connection", |text| text == "Offline");
    browser.wait_for_text("[data-currency=EUR]", |text| text.contains("€10.00"));
    browser.keep_picture("offline-desktop");
    open_in(&services, &meanwhile, "Basil", "EUR");
    services.deposit(&meanwhile, 500);
    services.query.start_again();
    wait_live(&browser);
    browser.wait_for_text("[data-currency=EUR]", |text| text.contains("€15.00"));
    browser.wait_until("no notice", "!document.querySelector('.notice')");
    services.deposit(&meanwhile, 1);
    browser.wait_for_text("[data-currency=EUR]", |text| text.contains("€15.01"));
    browser.wait_for_text(".feed", |text| text.contains(&meanwhile));
    console_tells_only(&browser, "net::ERR_");

    // The projector stops: the views stay behind, and the page says so.
    services.projector.freeze();
    services.deposit(&before, 1);
    browser.wait_for_text(".notices", |text| text.contains("The projector is") && text.contains("behind"));
    services.projector.thaw();
    browser.wait_until("no notice", "!document.querySelector('.notice')");
    browser.wait_for_text("[data-currency=EUR]", |text| text.contains("€15.02"));
}

#[test]
fn g09_the_page_says_that_redis_is_gone_and_recovers() {
    let mut redis = Redis::start();
    let services = Services::start(Deployment::new().with("MILLRACE_REDIS_URL", redis.url.clone()));
    let id = services.open("Ada");
    services.deposit(&id, 1_000);
    let browser = Browser::start();
    browser.open(&services.query.url());
    wait_live(&browser);
    browser.wait_for_text("[data-currency=EUR]", |text| text.contains("€10.00"));
    browser.console_is_empty();

    redis.kill();
    browser.wait_for_text(".notices", |text| text.contains("Redis"));
    browser.wait_until(
        "Redis marked as gone",
        "!document.querySelector('[data-part=redis]').innerText.includes('answers')",
    );
    // What was known stays, and commands go on meanwhile.
    browser.wait_for_text("[data-currency=EUR]", |text| text.contains("€10.00"));
    services.deposit(&id, 500);
    redis.start_again();
    wait_live(&browser);
    browser.wait_for_text("[data-part=redis]", |text| text.contains("answers"));
    browser.wait_for_text("[data-currency=EUR]", |text| text.contains("€15.00"));
    browser.wait_until("no notice", "!document.querySelector('.notice')");
    services.deposit(&id, 1);
    browser.wait_for_text("[data-currency=EUR]", |text| text.contains("€15.01"));
    console_tells_only(&browser, "503");
}

#[test]
fn g13_what_waits_and_what_could_not_be_read_is_shown() {
    let services = Services::start(Deployment::new());
    let deployment = &services.deployment;
    let (id, bad) = (services.open("Ada"), format!("<b>{}</b>", new_id()));
    let producer = Producer::new("murmur2_random");
    producer.send(&deployment.topic("events"), &Draft::new(&id, b"garbage".to_vec()).to(deployment.partition_of(&id)));
    producer.send(&deployment.topic("commands"), &Draft::new(&bad, b"garbage".to_vec()));
    let browser = Browser::start();
    browser.open(&format!("{}/#/system", services.query.url()));
    wait_live(&browser);
    browser.wait_for_text("[aria-label=Parked]", |text| text.contains(&id) && text.contains("1 event waits"));
    browser.wait_for_text("[aria-label='Dead letters']", |text| text.contains(&bad) && text.contains(".commands/"));
    for part in ["redis", "kafka", "registry"] {
        browser.wait_for_text(&format!("[data-part={part}]"), |text| text.contains("answers"));
    }
    browser.wait_for_text("[aria-label=Projections]", |text| text.contains("bank-accounts") && text.contains("live"));
    browser.keep_picture("system-desktop");
    browser.open(&format!("{}/#/accounts/{id}", services.query.url()));
    browser.wait_for_text(".account-head", |text| text.contains("parked"));
    browser.console_is_empty();
}

#[test]
fn g14_the_page_asks_for_the_token_and_then_works() {
    let deployment = Deployment::new().with("MILLRACE_API_TOKEN", "s3cret");
    let commands = deployment.command_service("c1");
    let _projector = deployment.projector_service("p1");
    let queries = deployment.query_service();
    let id = new_id();
    let send = |command: &str, body| {
        let request = millrace_tests::services::command_at(&commands, &id, command, &body);
        let answer = request.header("Authorization", "Bearer s3cret").send();
        assert!(answer.status < 300, "{answer:?}");
    };
    send("open", json!({"owner": "Ada", "currency": "EUR"}));
    let browser = Browser::start();
    browser.open(&queries.url());
    browser.wait_for_text(".connection", |text| text == "Locked");
    browser.keys("#token", "wrong\u{e007}");
    browser.wait_for_text(".locked", |text| text.contains("not accepted"));
    browser.keys("#token", "s3cret\u{e007}");
    wait_live(&browser);
    send("deposit", json!({"amount_minor": 700}));
    browser.wait_for_text("[data-currency=EUR]", |text| text.contains("€7.00"));
    assert_eq!(browser.run("return Object.keys(localStorage).length"), json!(0), "the token is kept for this tab only");
    console_tells_only(&browser, "401");
}

#[test]
fn the_page_fits_its_screen_is_readable_and_stays_where_it_is() {
    let services = Services::shared();
    let ids: BTreeMap<&str, String> =
        ["Ada", "Chidi", "Freya"].into_iter().map(|owner| (owner, services.open(owner))).collect();
    for (step, id) in ids.values().cycle().take(24).enumerate() {
        services.deposit(id, 1_000 + 170 * step as i64);
    }
    let browser = Browser::start();
    // Everything that moves without somebody's doing.
    let watch = "window.moved = 0; new PerformanceObserver((list) => { for (const entry of list.getEntries()) \
                 if (!entry.hadRecentInput) window.moved += entry.value; }).observe({type: 'layout-shift', buffered: true})";
    for screen in [DESKTOP, PHONE] {
        browser.resize(screen);
        for scheme in ["light", "dark"] {
            browser.prefer(scheme);
            for (page, path, there) in [
                ("overview", "#/".to_owned(), "[data-currency=EUR]"),
                ("accounts", "#/accounts".to_owned(), "tr[data-id]"),
                ("account", format!("#/accounts/{}", ids["Ada"]), "tr[data-sequence]"),
                ("system", "#/system".to_owned(), "[aria-label=Projections] tbody tr"),
            ] {
                browser.open("about:blank");
                browser.open(&format!("{}/{path}", services.query.url()));
                browser.run(watch);
                browser.wait_for_text(there, |text| !text.is_empty());
                wait_live(&browser);
                services.deposit(&ids["Ada"], 1);
                let (wide, room) = (browser.run("return document.documentElement.scrollWidth"), screen.width);
                assert!(wide.as_u64() <= Some(room.into()), "{page} is {wide} wide on {room}");
                browser.keep_picture(&format!("{page}-{}-{scheme}", screen.name));
                assert_eq!(browser.run(include_str!("readable.js")), json!([]), "{page}, {scheme}");
                let moved = browser.run("return window.moved").as_f64().expect("a number");
                println!("{page}, {screen:?}, {scheme}: moved by {moved:.3}");
                assert!(moved < 0.1, "{page} moved by {moved} on {screen:?}");
            }
        }
    }
    browser.console_is_empty();
}

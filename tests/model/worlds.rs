//! The small worlds. Each has a little of some kinds of trouble; all orders of events of each are looked at.

use crate::provider::{Card, Gone, Permit, Rejects, Return, User, Ways};
use crate::state::Budget;
use crate::world::World;

/// A single coupon at a provider that uses a number once more after a return: of what is documented, the harshest.
const HARSH: Ways = Ways {
    rounds: 1,
    forgets_returned: true,
    signs_rejections: true,
    shows_numbers: true,
    keeps_numbers: false,
};
/// One that keeps every number, and does not sign its rejections.
const UNSIGNED: Ways = Ways { forgets_returned: false, signs_rejections: false, ..HARSH };
/// One that does not show who used a coupon.
const UNNUMBERED: Ways = Ways { shows_numbers: false, ..HARSH };
/// A legacy sequential coupon.
const ROUNDS: Ways = Ways { rounds: 2, ..HARSH };
const NONE: Budget = Budget {
    crashes: 0,
    dead_letters: 0,
    cut_offs: 0,
    duplicates: 0,
    faults: 0,
    changes: 0,
    holds: 0,
    rejections: 0,
    hand_backs: 0,
    publications: 0,
    replays: 0,
    unclear: 0,
    unconfirmed: 0,
};

/// Beside a coupon that is usable: one that is not yet, that the provider rejects by whatever name or does not know, that was
/// returned long ago, that another order has used.
const CARDS: [fn(&mut Card); 5] = [
    |card| card.gone = Some(Gone::Pending),
    |card| card.rejected = Some(Rejects::Openid),
    |card| card.rejected = Some(Rejects::NotFound),
    |card| card.permits[0] = Permit { used: None, returned: Some(Return::LongBefore) },
    |card| card.permits[0] = Permit { used: Some(User::Other), returned: None },
];

/// Every world. `more` is how much further `make model` goes.
pub(crate) fn all(more: u8) -> Vec<World> {
    let world = |name, ways, budget| World::new(name, ways, budget);
    vec![
        world(
            "two crashes, two retry messages twice, two bad answers",
            HARSH,
            Budget { crashes: 2, duplicates: 2, faults: 2, changes: more, ..NONE },
        )
        .with_instances(2),
        world(
            "two crashes, two retry messages twice, a change",
            HARSH,
            Budget { crashes: 2, duplicates: 2, faults: more, changes: 1, ..NONE },
        )
        .with_instances(2),
        world("bad answers", HARSH, Budget { faults: 2 + more, changes: 2, ..NONE }),
        world("any coupon", HARSH, Budget { faults: 2, changes: 1 + more, ..NONE }).with_cards(&CARDS),
        world("unsigned rejections", UNSIGNED, Budget { faults: 2, changes: 1 + more, ..NONE })
            .with_cards(&CARDS),
        world("no request numbers", UNNUMBERED, Budget { faults: 2, changes: 1 + more, ..NONE }),
        world(
            "request numbers kept after a return",
            Ways { keeps_numbers: true, ..HARSH },
            Budget { faults: 2, changes: 2 + more, ..NONE },
        )
        .with_cards(&CARDS),
        world("sequential coupon", ROUNDS, Budget { faults: 2, changes: 2 + more, ..NONE }),
        world(
            "sequential coupon, numbers kept, a crash",
            Ways { keeps_numbers: true, ..ROUNDS },
            Budget { crashes: 1, faults: 1 + more, changes: 1, ..NONE },
        ),
        world(
            "sequential coupon, no request numbers",
            Ways { rounds: 2, ..UNNUMBERED },
            Budget { faults: 2, changes: 1 + more, ..NONE },
        ),
        world(
            "sequential coupon, no request numbers, a stop",
            Ways { rounds: 2, ..UNNUMBERED },
            Budget { crashes: 1, hand_backs: 1, faults: more, changes: 1, ..NONE },
        )
        .with_cards(&[|card| card.permits[0] = Permit { used: Some(User::Other), returned: None }]),
        world("crashes", HARSH, Budget { crashes: 2, faults: 1 + more, changes: 1, ..NONE }),
        world("a crash and bad answers", HARSH, Budget { crashes: 1, faults: 2, changes: 1, ..NONE })
            .with_instances(2),
        world("a crash, any coupon", UNSIGNED, Budget { crashes: 1, faults: 1, changes: 1 + more, ..NONE })
            .with_cards(&CARDS),
        world("retry messages twice", HARSH, Budget { duplicates: 2, faults: 1 + more, changes: 2, ..NONE })
            .with_instances(2),
        world(
            "two instances, a crash",
            HARSH,
            Budget { crashes: 1, duplicates: 1, faults: 1 + more, changes: 1, ..NONE },
        )
        .with_instances(2),
        world("an instance cut off", HARSH, Budget { cut_offs: 1, faults: 2, changes: more, ..NONE })
            .with_cards(&CARDS)
            .with_instances(2),
        world("calls held back", HARSH, Budget { holds: 2 + more, faults: 1, changes: 1, ..NONE }),
        world("a deadline soon", HARSH, Budget { holds: 2, faults: 1 + more, changes: 1, ..NONE })
            .with_deadline(3),
        world("a deadline at once", HARSH, Budget { holds: 2, faults: 1 + more, changes: 1, ..NONE })
            .with_deadline(1),
        world("few attempts", HARSH, Budget { crashes: 1, faults: 2, changes: 1 + more, ..NONE })
            .with_attempts_max(2),
        world(
            "few attempts, retry messages twice",
            HARSH,
            Budget { duplicates: 1, faults: 2, changes: more, ..NONE },
        )
        .with_attempts_max(2)
        .with_instances(2),
        world("no delay queues", HARSH, Budget { crashes: 1, faults: 2, changes: more, ..NONE })
            .without_delays(),
        world(
            "events rejected, a stop",
            HARSH,
            Budget { rejections: 1, hand_backs: 1, faults: 1, changes: 1 + more, ..NONE },
        ),
        world(
            "dead letters",
            HARSH,
            Budget { crashes: 1, dead_letters: 1, faults: 1 + more, changes: 1, ..NONE },
        )
        .with_instances(2),
        world("published twice", HARSH, Budget { publications: 1, faults: 1, changes: 1 + more, ..NONE })
            .with_instances(2),
        world(
            "whose rejection it is",
            HARSH,
            Budget { unclear: 2, crashes: 1, faults: 1, changes: 1 + more, ..NONE },
        )
        .with_cards(&[|card| card.rejected = Some(Rejects::Parameter)]),
        world(
            "no confirmation in time",
            HARSH,
            Budget { unconfirmed: 1, hand_backs: 1, faults: 1 + more, changes: 1, ..NONE },
        )
        .with_instances(2),
        world("replayed", HARSH, Budget { replays: 1, faults: 2, changes: 1 + more, ..NONE })
            .with_attempts_max(2)
            .with_deadline(4),
    ]
}

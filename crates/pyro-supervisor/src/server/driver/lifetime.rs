//! The end of the lifetime: when it is, and the timer that reports it.

use std::rc::Rc;

use tokio::task::spawn_local;

use super::Driver;
use crate::protocol::{Reply, Request};
use crate::server::state::{ClientId, Input};
use crate::server::{Boot, Clock, Store};

impl<'a, B: Boot + 'a, S: Store + 'static, C: Clock> Driver<'a, B, S, C> {
    /// Reports the end of the lifetime of what this supervisor owns now.
    pub(super) fn watch_lifetime(&mut self) {
        let (clock, inbox, epoch) = (Rc::clone(&self.clock), self.inbox.clone(), self.life.epoch());
        let mut lifetime = self.lifetime.subscribe();
        let timer = spawn_local(async move {
            loop {
                let end = *lifetime.borrow_and_update();
                tokio::select! {
                    reached = clock.reaches(end) => {
                        if reached.is_err() {
                            // Without a timer the VM would live forever; better no VM at all.
                            tracing::error!("no timer for the VM's end of life");
                        }
                        break;
                    }
                    changed = lifetime.changed() => if changed.is_err() { return },
                }
            }
            inbox.input(Input::LifetimeOver(epoch));
        });
        self.timer = Some(timer.abort_handle());
    }

    /// Changes the end of the lifetime as the client requests.
    pub(super) async fn extend(&mut self, client: ClientId) {
        let Some((Request::Extend { expires_at }, _)) = self.clients.get(&client) else { return };
        let expires_at = *expires_at;
        let is_spare = self.life.terms().is_spare;
        // Each of several processes that keep spares may extend their lifetime; none shortens it for the others.
        self.lifetime.send_modify(|end| *end = if is_spare { end.max(expires_at) } else { expires_at });
        self.is_extended = !is_spare;
        self.reply(client, Reply::Done).await;
    }
}

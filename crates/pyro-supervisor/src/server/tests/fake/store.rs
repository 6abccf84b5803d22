//! Records what the supervisor does.

use std::rc::Rc;
use std::time::Duration;

use pyro_wire::Exec;
use tokio::time::sleep;

use super::{Fact, StoreBehaviour, World};
use crate::conversation::CommandOutcome;
use crate::server::{Store, StoreError};
use crate::spec::Retention;
use crate::{BootInfo, EndReason, MountPoint, PublishedPort, ServiceDefinition, ServiceStatus};

fn full() -> StoreError {
    StoreError { is_permanent: false, cause: "the disk is full".to_owned() }
}

pub(crate) struct FakeStore(pub(crate) Rc<World>);

impl FakeStore {
    async fn take_time(&self) {
        sleep(Duration::from_millis(self.0.conditions.store_ms)).await;
    }

    /// Fails for this many attempts in total, as on a disk that is full for a while.
    fn fail_at_first(&self, attempts: u32) -> Result<(), StoreError> {
        let refused = self.0.ends_refused.get();
        if self.0.conditions.store != StoreBehaviour::FailsAtFirst || refused >= attempts {
            return Ok(());
        }
        self.0.ends_refused.set(refused + 1);
        Err(full())
    }
}

impl Store for FakeStore {
    async fn record_start(&self, _vm_id: &str, _info: &BootInfo) -> Result<f64, StoreError> {
        self.take_time().await;
        if self.0.conditions.start_is_refused {
            return Err(full());
        }
        self.0.note(Fact::StartRecorded);
        Ok(self.0.conditions.lifetime.into())
    }

    async fn record_end(
        &self,
        _vm_id: &str,
        _retention: Retention,
        reason: &EndReason,
        loss: Option<&str>,
    ) -> Result<(), StoreError> {
        self.take_time().await;
        if self.0.conditions.end_is_refused {
            return Err(full());
        }
        *self.0.loss.borrow_mut() = loss.map(str::to_owned);
        if *reason == EndReason::Expired {
            self.0.expired_at.set(Some(self.0.began.elapsed().as_secs_f64()));
        }
        self.0.note(Fact::EndRecorded(reason.clone()));
        Ok(())
    }

    async fn record_ports(&self, _vm_id: &str, ports: &[PublishedPort]) -> Result<(), StoreError> {
        self.take_time().await;
        if self.0.conditions.begins_are_refused {
            return Err(full());
        }
        self.0.note(Fact::PortsRecorded(ports.to_vec()));
        Ok(())
    }

    async fn services(&self, _vm_id: &str) -> Result<Vec<ServiceDefinition>, StoreError> {
        if !self.0.services.borrow().is_empty() {
            self.fail_at_first(2)?;
        }
        Ok(self.0.services.borrow().clone())
    }

    async fn record_service(
        &self,
        _vm_id: &str,
        definition: &ServiceDefinition,
        status: &ServiceStatus,
    ) -> Result<(), StoreError> {
        self.take_time().await;
        if self.0.conditions.begins_are_refused {
            return Err(full());
        }
        let mut services = self.0.services.borrow_mut();
        services.retain(|known| known.name != definition.name);
        services.push(definition.clone());
        self.0.note(Fact::ServiceRecorded(definition.name.clone(), status.clone()));
        Ok(())
    }

    async fn record_service_status(
        &self,
        _vm_id: &str,
        name: &str,
        status: &ServiceStatus,
    ) -> Result<(), StoreError> {
        self.take_time().await;
        self.fail_at_first(3)?;
        if self.0.conditions.store == StoreBehaviour::RefusesStatus {
            return Err(full());
        }
        self.0.note(Fact::ServiceRecorded(name.to_owned(), status.clone()));
        Ok(())
    }

    async fn forget_service(&self, _vm_id: &str, name: &str) -> Result<(), StoreError> {
        self.take_time().await;
        self.0.services.borrow_mut().retain(|known| known.name != name);
        self.0.note(Fact::ServiceForgotten(name.to_owned()));
        Ok(())
    }

    async fn record_mounts(
        &self,
        _vm_id: &str,
        mounts: &[MountPoint],
        lost: &[String],
    ) -> Result<(), StoreError> {
        self.take_time().await;
        if self.0.conditions.begins_are_refused {
            return Err(full());
        }
        let shown = |mount: &MountPoint| {
            let is_lost = lost.contains(&mount.guest);
            if is_lost { format!("{} (lost)", mount.guest) } else { mount.guest.clone() }
        };
        self.0.note(Fact::MountsRecorded(mounts.iter().map(shown).collect()));
        Ok(())
    }

    async fn forget(&self, _vm_id: &str) -> Result<(), StoreError> {
        self.take_time().await;
        if self.0.conditions.end_is_refused {
            return Err(full());
        }
        self.0.note(Fact::Forgotten);
        Ok(())
    }

    async fn record_command(&self, _vm_id: &str, _exec: &Exec) -> Result<u64, StoreError> {
        self.take_time().await;
        if self.0.conditions.begins_are_refused {
            return Err(full());
        }
        let sequence = self.0.sequence.get() + 1;
        self.0.sequence.set(sequence);
        self.0.running.borrow_mut().insert(sequence, true);
        self.0.note(Fact::CommandRecorded(sequence));
        Ok(sequence)
    }

    async fn record_command_end(
        &self,
        _vm_id: &str,
        sequence: u64,
        outcome: &CommandOutcome,
    ) -> Result<(), StoreError> {
        self.take_time().await;
        let refused = self.0.ends_refused.get();
        match self.0.conditions.store {
            StoreBehaviour::FailsAtFirst if refused < 2 => {
                self.0.ends_refused.set(refused + 1);
                return Err(full());
            }
            StoreBehaviour::RefusesAll => {
                return Err(StoreError { is_permanent: true, cause: "out of range".to_owned() });
            }
            StoreBehaviour::RefusesEnds if !matches!(outcome, CommandOutcome::Unknown { .. }) => {
                return Err(StoreError { is_permanent: true, cause: "out of range".to_owned() });
            }
            _ => {}
        }
        let was_running = self.0.running.borrow_mut().insert(sequence, false);
        assert_eq!(was_running, Some(true), "a second end of command {sequence}");
        self.0.note(Fact::CommandEnded(sequence, outcome.clone()));
        Ok(())
    }
}

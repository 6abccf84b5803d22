//! The only way from a tool to the contract. The policy is checked here, by the class of access of each operation and by what
//! its request asks for, so that no tool can skip the check. Every request is made on behalf of one client, so that no tool
//! can reach what the client may not find.

use std::sync::Arc;

use pyro_api::operations::{ListEnvironments, StatusTask, StatusVm};
use pyro_api::{Access, CallContext, Caller, Contract, Environment, Kind, Operation, Target, VmId, VmSpec};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::policy::{Machine, Policy};

/// The contract and the operator's limits. Operations need a [`Guard`], which exists only for a caller. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    contract: Arc<dyn Contract>,
    policy: Arc<Policy>,
}

/// The contract, as far as the operator allows it to one caller. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    gate: Gate,
    caller: Caller,
}

impl Gate {
    pub(crate) fn new(contract: Arc<dyn Contract>, policy: Policy) -> Self {
        Self { contract, policy: Arc::new(policy) }
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) fn max_active_vms(&self) -> u32 {
        self.contract.max_active_vms()
    }

    /// Keeps spare VMs for single commands, if this server runs any, until `cancel`.
    pub(crate) async fn keep_spares(&self, spec: VmSpec, cancel: &CancellationToken) {
        self.contract.keep_spares(spec, cancel).await;
    }

    /// The contract for one caller.
    pub(crate) fn guard(&self, caller: Caller) -> Guard {
        Guard { gate: self.clone(), caller }
    }
}

impl Guard {
    pub(crate) fn policy(&self) -> &Policy {
        self.gate.policy()
    }

    pub(crate) fn max_active_vms(&self) -> u32 {
        self.gate.max_active_vms()
    }

    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Checks a request and performs it.
    pub(crate) async fn perform<O: Operation>(
        &self,
        mut request: O,
        call: &CallContext,
    ) -> Result<O::Result, Failure> {
        let (access, policy) = (O::INFO.access, self.policy());
        let refused = |why: &str| Err(Failure::NotAllowed(format!("{} {why}", O::INFO.name)));
        match access {
            Access::HostFiles => {
                return refused("is not available on this server: it accesses files of the host");
            }
            Access::Operate => {
                return refused("is not available on this server: only its operator may use it");
            }
            Access::Create | Access::Enter | Access::Manage if policy.read_only => {
                return refused("is not available on this server: the server is read-only");
            }
            Access::Read | Access::ReadInside | Access::Create | Access::Enter | Access::Manage => {}
        }
        if access == Access::Create && request.part::<VmSpec>().is_none() {
            return refused("does not name the VM that it creates");
        }
        policy.check(&request)?;
        let call = CallContext { caller: self.caller.clone(), ..call.clone() };
        if access.enters() {
            match request.target() {
                Some(target) => {
                    let (kind, id) = self.check_target(target, &call).await?;
                    // What was checked is what is entered, whatever has that name by then.
                    request.retarget(kind, &id);
                }
                None => return refused("does not name the machine that it enters"),
            }
        }
        Ok(request.perform(&*self.gate.contract, &call).await?)
    }

    /// The environments that the policy allows.
    pub(crate) async fn environments(&self, call: &CallContext) -> Result<Vec<Environment>, Failure> {
        let mut environments = self.perform(ListEnvironments {}, call).await?;
        environments.retain(|environment| self.policy().allows(&environment.name));
        Ok(environments)
    }

    /// Checks an existing machine before something runs in it. Returns the id for which its name stands.
    async fn check_target(&self, target: Target<'_>, call: &CallContext) -> Result<(Kind, VmId), Failure> {
        let contract = &self.gate.contract;
        let (id, machine) = match target.kind {
            Kind::Vm => {
                let vm = contract.status_vm(StatusVm { vm: target.id.into() }, call).await?;
                (vm.vm_id.clone(), Machine::from(vm))
            }
            Kind::Task => {
                let request = StatusTask { task: target.id.into() };
                let task = contract.status_task(request, call).await?;
                (task.task_id.clone(), Machine::from(task))
            }
        };
        self.policy().check_machine(&machine)?;
        Ok((target.kind, id))
    }
}

#[cfg(test)]
mod tests;

use super::*;
use gradus_error::Kind;

fn read(variables: &str) -> Result<Option<Launch>> {
    let pairs: Vec<(&str, &str)> =
        variables.split_whitespace().map(|pair| pair.split_once('=').unwrap()).collect();
    Launch::from_environment(&|name| {
        pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    })
}

/// rank, world, local rank, local world, node, address
type Place = (usize, usize, usize, usize, usize, &'static str);

#[test]
fn launchers_are_understood() {
    let cases: &[(&str, Place)] = &[
        (
            "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 GROUP_RANK=1 MASTER_ADDR=10.0.0.7 MASTER_PORT=29400",
            (5, 8, 1, 4, 1, "10.0.0.7"),
        ),
        ("RANK=1 WORLD_SIZE=2", (1, 2, 1, 2, 0, "127.0.0.1")),
        ("RANK=1 WORLD_SIZE=2 LOCAL_RANK=1", (1, 2, 1, 2, 0, "127.0.0.1")),
        ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=localhost", (1, 2, 1, 2, 0, "localhost")),
        ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=trainer-0", (1, 2, 0, 1, 1, "trainer-0")),
        ("RANK=1 WORLD_SIZE=2 PET_MASTER_ADDR=trainer-0", (1, 2, 0, 1, 1, "trainer-0")),
        ("RANK=5 WORLD_SIZE=6 LOCAL_WORLD_SIZE=2 MASTER_ADDR=h", (5, 6, 1, 2, 2, "h")),
        (
            "RANK=3 WORLD_SIZE=4 NODE_RANK=1 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=h",
            (3, 4, 1, 2, 1, "h"),
        ),
        (
            "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=3 OMPI_COMM_WORLD_LOCAL_SIZE=4",
            (3, 4, 3, 4, 0, "127.0.0.1"),
        ),
        (
            "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2 \
             MASTER_ADDR=h SLURM_PROCID=0 SLURM_STEP_ID=0 SLURM_NTASKS=1",
            (3, 4, 1, 2, 1, "h"),
        ),
        ("PMI_RANK=1 PMI_SIZE=3 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=3", (1, 3, 1, 3, 0, "127.0.0.1")),
        ("PMI_RANK=0 PMI_SIZE=2", (0, 2, 0, 2, 0, "127.0.0.1")),
        ("PET_NNODES=2 PET_NODE_RANK=1 PET_NPROC_PER_NODE=1 PET_MASTER_ADDR=h", (1, 2, 0, 1, 1, "h")),
        (
            "SLURM_PROCID=5 SLURM_STEP_ID=0 SLURM_NTASKS=7 SLURM_LOCALID=1 SLURM_NODEID=2 SLURM_NNODES=4 \
             SLURM_STEP_TASKS_PER_NODE=2(x3),1 SLURM_JOB_NODELIST=n[04-07] SLURM_JOB_ID=17",
            (5, 7, 1, 2, 2, "n04"),
        ),
        (
            "SLURM_PROCID=1 SLURM_STEP_ID=0 SLURM_NTASKS=4 SLURM_LOCALID=1 SLURM_NODEID=0 SLURM_NNODES=2 SLURM_NTASKS_PER_NODE=2 \
             SLURM_LAUNCH_NODE_IPADDR=10.1.1.1",
            (1, 4, 1, 2, 0, "10.1.1.1"),
        ),
        (
            "SLURM_PROCID=1 SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_LOCALID=1 SLURM_NNODES=1 SLURM_JOB_NODELIST=n4",
            (1, 2, 1, 2, 0, "127.0.0.1"),
        ),
        // A step of two tasks within an allocation of eight.
        (
            "SLURM_PROCID=1 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=8 SLURM_LOCALID=1 SLURM_NNODES=1",
            (1, 2, 1, 2, 0, "127.0.0.1"),
        ),
        // An interactive allocation.
        (
            "SLURM_PROCID=0 SLURM_STEP_ID=0 SLURM_NTASKS=1 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_ID=5",
            (0, 1, 0, 1, 0, "127.0.0.1"),
        ),
        // torchrun under srun: Slurm counts the nodes, torchrun the ranks.
        (
            "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=h SLURM_PROCID=1 SLURM_STEP_ID=0 SLURM_NTASKS=2",
            (3, 4, 1, 2, 1, "h"),
        ),
    ];
    for (variables, (rank, world, local_rank, local_world, node, address)) in cases {
        let launch = read(variables).unwrap().unwrap();
        let got =
            (launch.rank, launch.world_size, launch.local_rank, launch.local_world_size, launch.node_rank);
        assert_eq!(got, (*rank, *world, *local_rank, *local_world, *node), "{variables}");
        assert_eq!(launch.master_address, *address, "{variables}");
    }
}

#[test]
fn nothing_said_is_no_launch() {
    // A batch script is run once for the whole job: its process is a task of no step.
    let batch = "SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=4 SLURM_JOB_ID=7";
    for variables in
        [batch, "", "SLURM_NTASKS=4 SLURM_JOB_ID=7", "RANK= WORLD_SIZE=", "MASTER_ADDR=h MASTER_PORT=1"]
    {
        assert_eq!(read(variables).unwrap(), None, "{variables}");
    }
}

#[test]
fn contradictions_name_their_variable() {
    let cases = [
        ("RANK=1", "WORLD_SIZE"),
        ("WORLD_SIZE=2", "RANK"),
        ("RANK=2 WORLD_SIZE=2", "RANK"),
        ("RANK=-1 WORLD_SIZE=2", "RANK"),
        ("RANK=0 WORLD_SIZE=two", "WORLD_SIZE"),
        ("RANK=0 WORLD_SIZE=0", "WORLD_SIZE"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=2 LOCAL_WORLD_SIZE=2", "LOCAL_RANK"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2", "LOCAL_RANK"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=0", "LOCAL_WORLD_SIZE"),
        ("RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 MASTER_ADDR=h", "LOCAL_WORLD_SIZE"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=4", "LOCAL_WORLD_SIZE"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1", "MASTER_ADDR"),
        ("RANK=0 WORLD_SIZE=2 MASTER_PORT=70000", "MASTER_PORT"),
        ("RANK=0 WORLD_SIZE=2 MASTER_PORT=0", "MASTER_PORT"),
        ("RANK=0 WORLD_SIZE=2 GROUP_RANK=x", "GROUP_RANK"),
        ("RANK=0 WORLD_SIZE=2 GRADUS_RENDEZVOUS_FD=x", "GRADUS_RENDEZVOUS_FD"),
        ("OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE"),
        (
            "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=0",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ),
        ("PMI_RANK=4 PMI_SIZE=4", "PMI_RANK"),
        ("PET_NODE_RANK=0 PET_NNODES=1:4", "PET_NNODES"),
        ("PET_NODE_RANK=0 PET_NNODES=2 PET_NPROC_PER_NODE=4", "PET_NPROC_PER_NODE"),
        ("SLURM_PROCID=0 SLURM_STEP_ID=0", "SLURM_NTASKS"),
        ("SLURM_PROCID=3 SLURM_STEP_ID=0 SLURM_NTASKS=2", "SLURM_PROCID"),
        (
            "SLURM_PROCID=3 SLURM_STEP_ID=0 SLURM_NTASKS=8 SLURM_LOCALID=18446744073709551615 SLURM_NNODES=2",
            "local rank",
        ),
        (
            "SLURM_PROCID=0 SLURM_STEP_ID=0 SLURM_NTASKS=4 SLURM_LOCALID=0 SLURM_NNODES=2 SLURM_STEP_TASKS_PER_NODE=x",
            "SLURM_STEP_TASKS_PER_NODE",
        ),
        (
            "SLURM_PROCID=0 SLURM_STEP_ID=0 SLURM_NTASKS=4 SLURM_LOCALID=0 SLURM_NNODES=2 SLURM_JOB_NODELIST=n[",
            "SLURM_JOB_NODELIST",
        ),
    ];
    for (variables, culprit) in cases {
        let error = read(variables).expect_err(variables);
        assert_eq!(*error.kind(), Kind::Invalid, "{variables}");
        assert!(error.to_string().contains(culprit), "{variables}: {error}");
    }
}

#[test]
fn ports_are_given_or_derived_from_the_job() {
    let port = |variables: &str| read(variables).unwrap().unwrap().master_port;
    assert_eq!(port("RANK=0 WORLD_SIZE=2"), 29500);
    assert_eq!(port("RANK=0 WORLD_SIZE=2 MASTER_PORT=123"), 123);
    assert_eq!(port("RANK=0 WORLD_SIZE=2 PET_MASTER_PORT=124"), 124);
    assert_eq!(port("RANK=0 WORLD_SIZE=2 MASTER_PORT=123 TORCHELASTIC_USE_AGENT_STORE=True"), 124);
    assert_eq!(port("RANK=0 WORLD_SIZE=2 MASTER_PORT=65535 TORCHELASTIC_USE_AGENT_STORE=True"), 65534);
    assert_eq!(port("RANK=0 WORLD_SIZE=2 MASTER_PORT=123 TORCHELASTIC_USE_AGENT_STORE=False"), 123);
    assert_eq!(
        port("RANK=0 WORLD_SIZE=2 MASTER_PORT=123 GRADUS_MASTER_PORT=9 TORCHELASTIC_USE_AGENT_STORE=True"),
        9
    );
    let slurm = |job: u32, step: u32| {
        port(&format!("SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_NNODES=1 SLURM_JOB_ID={job} SLURM_STEP_ID={step}"))
    };
    assert_eq!(slurm(1000, 0), slurm(1000, 0));
    assert_ne!(slurm(1000, 0), slurm(1001, 0));
    assert_ne!(slurm(1000, 0), slurm(1000, 1));
    assert!((15000..30000).contains(&slurm(77, 3)));
    let mpi = "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=2";
    assert_ne!(port(&format!("{mpi} PMIX_NAMESPACE=a")), port(&format!("{mpi} PMIX_NAMESPACE=b")));
}

#[test]
fn jobs_are_told_apart_by_what_their_launchers_call_them_or_by_where_they_meet() {
    let name = |variables: &str| read(variables).unwrap().unwrap().job_name();
    let torchrun = "RANK=0 WORLD_SIZE=2 MASTER_ADDR=10.0.0.7 MASTER_PORT=29400";
    assert_eq!(name(torchrun), "10.0.0.7:29400");
    assert_eq!(name(&format!("{torchrun} TORCHELASTIC_RUN_ID=none")), "10.0.0.7:29400");
    assert_eq!(name(&format!("{torchrun} TORCHELASTIC_RUN_ID=mine")), "mine");
    assert_eq!(name("SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_NNODES=1 SLURM_JOB_ID=7 SLURM_STEP_ID=1"), "7.1");
    let mpi = "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=2";
    assert_eq!(name(&format!("{mpi} PMIX_NAMESPACE=a")), "a");
    // Another host's loopback interface is another place.
    let [near, again] = [(); 2].map(|()| name("RANK=0 WORLD_SIZE=2 MASTER_PORT=29400"));
    assert!(near.ends_with("/127.0.0.1:29400") && near == again, "{near}");
}

#[test]
fn a_handed_on_listener_is_noticed() {
    let launch = read("RANK=0 WORLD_SIZE=2 GRADUS_RENDEZVOUS_FD=0").unwrap().unwrap();
    assert_eq!(launch.rendezvous_fd, Some(0));
    assert_eq!(Launch::local(1, 2, 5).rendezvous_fd, None);
}

#[test]
fn lists_of_interfaces_are_taken_along() {
    let launch = read("RANK=0 WORLD_SIZE=2 NCCL_SOCKET_IFNAME=^lo,docker").unwrap().unwrap();
    assert_eq!(launch.interfaces, "^lo,docker");
    assert_eq!(read("RANK=0 WORLD_SIZE=2").unwrap().unwrap().interfaces, "");
}

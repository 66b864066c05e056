//! One node, real frames: the worked example, shares, flows, and what must never leave a node.

mod backend_script;
mod errors;
mod example;
mod flows;
mod silence;

fn main() -> std::process::ExitCode {
    lb_tests::runner::main(&[
        ("example_on_one_interface_with_the_ring_engine", example::one_interface_ring),
        ("example_on_two_interfaces_with_the_ring_engine", example::two_interfaces_ring),
        ("example_on_one_interface_with_the_mmsg_engine", example::one_interface_mmsg),
        ("example_on_two_interfaces_with_the_mmsg_engine", example::two_interfaces_mmsg),
        ("udp_flows_land_by_weight_each_on_one_backend", flows::shares),
        ("backends_come_and_go_under_open_connections", flows::backends_come_and_go),
        ("the_kernel_is_silent_for_a_vip", silence::kernel_is_silent),
        ("foreign_tagged_and_looping_frames_are_counted_and_dropped", silence::foreign_frames),
        ("a_routed_vip_is_served", flows::routed_vip),
        ("each_startup_fault_has_its_own_message", errors::startup_faults),
        ("a_missing_capability_is_named", errors::missing_capability),
        ("the_backend_script_prepares_and_undoes", backend_script::add_and_undo),
    ])
}

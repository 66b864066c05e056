//! One node, real frames: the worked example, shares, flows, and what must never leave a node.

mod answers;
mod backend_script;
mod errors;
mod example;
mod flows;
mod ipv6;
mod kernel_faults;
mod landings;
mod large;
mod own_backend;
mod quotes;
mod services;
mod silence;

fn main() -> std::process::ExitCode {
    lb_tests::runner::main(&[
        ("example_on_one_interface_with_the_ring_engine", example::one_interface_ring),
        ("example_on_two_interfaces_with_the_ring_engine", example::two_interfaces_ring),
        ("example_on_one_interface_with_the_mmsg_engine", example::one_interface_mmsg),
        ("example_on_two_interfaces_with_the_mmsg_engine", example::two_interfaces_mmsg),
        ("example_on_one_interface_with_the_multishot_engine", example::one_interface_multishot),
        ("example_on_two_interfaces_with_the_multishot_engine", example::two_interfaces_multishot),
        ("udp_flows_land_by_weight_each_on_one_backend", flows::shares),
        ("backends_come_and_go_under_open_connections", flows::backends_come_and_go),
        ("workers_come_and_go_under_open_connections", flows::workers_come_and_go),
        ("services_take_ports_and_ranges_and_tie_clients", services::ports_and_affinity),
        ("flows_of_dead_and_drained_backends_are_placed_anew", services::flows_are_placed_anew),
        ("workers_take_real_time_priority_where_they_may", flows::realtime),
        ("the_kernel_is_silent_for_a_vip", silence::kernel_is_silent),
        ("foreign_tagged_and_looping_frames_are_counted_and_dropped", silence::foreign_frames),
        ("a_routed_vip_is_served", flows::routed_vip),
        ("an_ipv6_vip_is_served_by_backends_of_either_family", ipv6::served),
        ("neighbours_of_an_ipv6_vip_are_answered", ipv6::neighbors),
        ("the_kernel_is_silent_for_an_ipv6_vip", ipv6::kernel_is_silent),
        ("hostile_ipv6_frames_are_counted_and_dropped", ipv6::hostile_frames),
        ("an_ipv6_vip_is_taken_over", ipv6::taken_over),
        ("icmp_errors_reach_the_backend_of_the_flow_that_they_quote", quotes::errors),
        ("a_smaller_mtu_behind_the_client_is_found", large::path_mtu_behind_the_client),
        ("a_smaller_mtu_towards_the_backends_is_told", large::path_mtu_at_the_node),
        ("super_frames_are_segmented_where_the_interface_does_not", large::segmented),
        ("fragments_reach_one_backend_in_any_order", large::fragments),
        ("nodes_are_backends_themselves", own_backend::served),
        ("ports_that_nobody_serves_are_refused", answers::refusals),
        ("a_node_explains_and_lists_its_flows", answers::explained),
        ("an_interface_changes_goes_and_returns", answers::an_interface_changes),
        ("an_interface_that_is_gone_does_not_keep_the_others_back", answers::one_interface_returns),
        ("a_ring_that_stops_is_opened_anew", kernel_faults::a_ring_stops),
        ("as_many_interfaces_as_a_node_may_have_are_guarded", kernel_faults::many_interfaces_are_guarded),
        ("each_startup_fault_has_its_own_message", errors::startup_faults),
        ("a_missing_capability_is_named", errors::missing_capability),
        ("the_backend_script_prepares_and_undoes", backend_script::add_and_undo),
    ])
}

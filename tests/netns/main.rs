//! One node, real frames: the worked example, shares, flows, and what must never leave a node.

mod accelerated;
mod answers;
mod backend_script;
mod captures;
mod checks;
mod counts;
mod errors;
mod example;
mod flows;
mod guard;
mod health;
mod hostile;
mod ipv6;
mod kernel_faults;
mod landings;
mod large;
mod mistakes;
mod own_backend;
mod quotes;
mod services;
mod silence;

use lb_tests::{
    runner::Test,
    site::{ALL_ENGINES, ENGINES},
    sys::bpf,
};

fn main() -> std::process::ExitCode {
    lb_tests::runner::main(
        1,
        [
            Test::each("example_on_one_interface", &["ring", "multishot", "mmsg"], example::one_interface),
            Test::each("example_on_two_interfaces", &["ring", "multishot", "mmsg"], example::two_interfaces),
            Test::once("known_flows_are_accelerated", accelerated::forwards_what_is_known).needs(bpf::may_load),
            Test::once("accelerated_flows_go_on_after_a_crash", accelerated::goes_on_after_a_crash)
                .needs(bpf::may_load),
            Test::once("accelerated_flows_lose_nothing_in_a_takeover", accelerated::loses_nothing_in_a_takeover)
                .needs(bpf::may_load),
            Test::once("a_flood_of_new_flows_is_placed_by_the_accelerator", accelerated::places_a_flood)
                .needs(bpf::may_load),
            Test::once("an_accelerator_stays_after_a_fault", accelerated::stays_after_a_fault).needs(bpf::may_load),
            Test::once("accelerated_flows_lose_nothing_in_a_restart", accelerated::loses_nothing_in_a_restart)
                .needs(bpf::may_load),
            Test::once("an_accelerator_comes_and_goes_under_connections", accelerated::is_switched_under_connections)
                .needs(bpf::may_load),
            Test::once("an_interface_that_takes_tags_off_is_not_accelerated", accelerated::leaves_what_takes_tags_off)
                .needs(bpf::may_load),
            Test::once("nothing_is_accelerated_during_captures", accelerated::is_quiet_during_captures)
                .needs(bpf::may_load),
            Test::once("udp_flows_land_by_weight_each_on_one_backend", flows::shares),
            Test::once("backends_come_and_go_under_open_connections", flows::backends_come_and_go),
            Test::once("workers_come_and_go_under_open_connections", flows::workers_come_and_go),
            Test::each("services_take_ports_and_ranges_and_tie_clients", &ALL_ENGINES, services::ports_and_affinity),
            Test::each(
                "flows_of_dead_and_drained_backends_are_placed_anew",
                &ALL_ENGINES,
                services::flows_are_placed_anew,
            ),
            Test::once("workers_take_real_time_priority_where_they_may", flows::realtime),
            Test::once("workers_stay_on_the_processors_that_are_named", flows::stay_on_their_processors),
            Test::once("the_kernel_is_silent_for_a_vip", silence::kernel_is_silent),
            Test::each(
                "foreign_tagged_and_looping_frames_are_counted_and_dropped",
                &ALL_ENGINES,
                silence::foreign_frames,
            ),
            Test::once("packets_are_counted_exactly_over_a_restart", counts::are_exact),
            Test::once("frames_are_captured_with_what_becomes_of_them", captures::as_a_file),
            Test::once("a_routed_vip_is_served", flows::routed_vip),
            Test::each("an_ipv6_vip_is_served_by_backends_of_either_family", &ENGINES, ipv6::served),
            Test::once("neighbours_of_an_ipv6_vip_are_answered", ipv6::neighbors),
            Test::once("the_kernel_is_silent_for_an_ipv6_vip", ipv6::kernel_is_silent),
            Test::each("hostile_ipv6_frames_are_counted_and_dropped", &ENGINES, ipv6::hostile_frames),
            Test::once("an_ipv6_vip_is_taken_over", ipv6::taken_over),
            Test::each("icmp_errors_reach_the_backend_of_the_flow_that_they_quote", &ENGINES, quotes::errors),
            Test::each("a_smaller_mtu_behind_the_client_is_found", &ENGINES, large::path_mtu_behind_the_client),
            Test::each("a_smaller_mtu_towards_the_backends_is_told", &ENGINES, large::path_mtu_at_the_node),
            Test::each("gso_frames_are_segmented_where_the_interface_does_not", &ENGINES, large::segmented),
            Test::each("fragments_reach_one_backend_in_any_order", &ALL_ENGINES, large::fragments),
            Test::each("nodes_are_backends_themselves", &ENGINES, own_backend::served),
            Test::once("ports_that_nobody_serves_are_refused", answers::refusals),
            Test::once("a_node_explains_and_lists_its_flows", answers::explained),
            Test::each("an_interface_changes_goes_and_returns", &ENGINES, answers::an_interface_changes),
            Test::each(
                "an_interface_that_is_gone_does_not_keep_the_others_back",
                &ENGINES,
                answers::one_interface_returns,
            ),
            Test::each("an_interface_that_stops_is_opened_anew", &ENGINES, kernel_faults::an_interface_stops)
                .needs(kernel_faults::tap_interfaces),
            Test::each("nobody_takes_a_backends_traffic_by_a_forged_frame", &ENGINES, hostile::backends_macs)
                .needs(kernel_faults::tap_interfaces),
            Test::each("another_probe_for_the_same_address_is_a_conflict", &ENGINES, hostile::probes)
                .needs(kernel_faults::tap_interfaces),
            Test::each("what_no_host_sends_from_is_dropped_and_not_answered", &ENGINES, hostile::bad_sources)
                .needs(kernel_faults::tap_interfaces),
            Test::each("trailers_and_large_packets_reach_the_backend", &ENGINES, hostile::lengths)
                .needs(kernel_faults::tap_interfaces),
            Test::each("answers_are_complete_in_themselves", &ENGINES, hostile::answers_are_whole)
                .needs(kernel_faults::tap_interfaces),
            Test::once("a_backend_whose_cable_is_pulled_gets_no_new_flows", health::unplugged),
            Test::once("a_second_tier_steps_in", health::tiers),
            Test::once("a_gateway_that_the_owner_alone_does_not_hear_moves_its_vips", health::gateway),
            Test::once("each_kind_of_check_meets_its_server", checks::kinds),
            Test::once("checks_take_a_clients_way", || checks::ways(false)),
            Test::once("checks_take_a_clients_way_by_two_interfaces", || checks::ways(true)),
            Test::once("nodes_that_are_backends_are_checked", checks::own_backends),
            Test::once("a_drained_backend_loses_its_flows_when_its_time_is_over", checks::drained),
            Test::once("a_server_that_ends_gets_no_new_flows", checks::verdicts),
            Test::once("a_backend_that_dies_under_flows_and_one_that_sends_them_back", checks::dying),
            Test::once("an_owner_that_is_cut_off_from_the_backends_lets_go", health::cut_off),
            Test::once("a_guard_that_is_taken_away_is_put_back", guard::what_is_taken_away_is_put_back),
            Test::once("a_guard_that_is_owned_stays", guard::what_is_owned_stays),
            Test::once("a_guard_that_cannot_be_put_back_is_told", guard::what_cannot_be_put_back_is_told),
            Test::once("as_many_interfaces_as_a_node_may_have_are_guarded", kernel_faults::many_interfaces_are_guarded),
            Test::once("each_startup_fault_has_its_own_message", errors::startup_faults),
            Test::once("a_missing_capability_is_named", errors::missing_capability),
            Test::once("mistakes_on_the_command_line_are_told", mistakes::on_the_command_line),
            Test::once("output_that_fails_is_told_apart", mistakes::output_that_fails),
            Test::once("a_backend_of_weight_zero_keeps_its_flows", mistakes::weight_zero),
            Test::once("a_file_in_the_sockets_place_stays", mistakes::a_file_in_the_sockets_place),
            Test::once("one_machine_is_drained_in_all_its_services", mistakes::all_services),
            Test::once("clients_of_others_are_served", mistakes::clients_of_others),
            Test::once("a_configuration_is_checked_as_it_is_started", mistakes::checked_as_started),
            Test::once("the_backend_script_prepares_and_undoes", backend_script::add_and_undo),
        ],
    )
}

//! Several nodes: takeover, crashes, membership, moves.

mod api;
mod campaign;
mod completions;
mod crashes;
mod declared;
mod doctor;
mod enroll;
mod events;
mod faults;
mod garbage;
mod looking;
mod membership;
mod metrics;
mod moves;
mod once;
mod overload;
mod page;
mod recovery;
mod security;
mod segments;
mod service;
mod takeover;
mod transcripts;
mod upgrades;
mod wrong_input;

use lb_tests::runner::Test;

fn main() -> std::process::ExitCode {
    lb_tests::python::prepare();
    lb_tests::browser::prepare();
    lb_tests::runner::main(
        2,
        [
            Test::once("a_killed_owners_vip_is_taken_over", takeover::owner_is_killed),
            Test::once("all_nodes_killed_during_writes_lose_nothing", crashes::all_killed_during_writes),
            Test::once("a_write_without_quorum_ends_with_4_and_its_retry_applies_once", crashes::quorum_loss),
            Test::once("every_node_takes_every_command", membership::any_node_takes_commands),
            Test::once("a_node_joins_and_the_leader_leaves_under_traffic", membership::join_and_leave),
            Test::once("one_node_becomes_five_and_one_again_without_a_loss", membership::one_five_one),
            Test::once("a_node_that_was_off_when_removed_is_told", membership::removed_while_off),
            Test::once("a_node_that_is_another_one_is_refused", membership::refusals),
            Test::once("two_nodes_and_a_witness_survive_the_loss_of_the_owner", membership::witness),
            Test::once("one_owner_follows_the_other_whatever_happens", faults::one_owner_follows_the_other),
            Test::once("a_partition_has_one_owner_and_heals_without_a_loss", faults::a_partition_has_one_owner),
            Test::once("a_short_campaign_breaks_no_promise", campaign::no_promise_is_broken),
            Test::once("the_campaign_finds_a_second_owner", campaign::a_second_owner_is_found),
            Test::once("a_lost_segment_is_left", segments::a_lost_segment_is_left),
            Test::once("an_address_in_use_is_not_taken", segments::an_address_in_use_is_not_taken),
            Test::once("without_a_majority_owners_let_go_or_hold_on_as_told", faults::quorum_loss),
            Test::once("vips_go_back_and_spread_when_told", faults::failback_and_rebalance),
            Test::once("a_single_survivor_goes_on_alone", recovery::a_survivor_goes_on_alone),
            Test::once("an_older_copy_of_a_store_is_refused", recovery::an_older_copy),
            Test::once("a_snapshot_is_saved_and_restored", recovery::a_snapshot_is_saved_and_restored),
            Test::once("a_rolling_upgrade_loses_nothing_and_has_no_way_back", upgrades::a_rolling_upgrade)
                .needs(upgrades::a_debug_build),
            Test::once("an_earlier_commit_is_upgraded_without_a_loss", upgrades::from_an_earlier_commit)
                .needs(upgrades::from_is_given),
            Test::once("a_halted_worker_gives_its_vips_away_and_says_why", service::a_halted_worker),
            Test::once("a_guard_that_is_refused_gives_the_vips_away", service::a_guard_that_is_refused),
            Test::once("blocked_heartbeats_are_told_of_by_log_and_status", service::blocked_heartbeats),
            Test::once("a_lapse_is_in_the_log_when_it_happens", service::a_cut_cable_is_told_at_once),
            Test::once("a_node_that_is_not_reached_does_not_churn", service::nothing_churns),
            Test::once("nodes_far_apart_are_told_the_timing_that_bears_it", service::nodes_far_apart),
            Test::once("a_vip_on_an_interface_is_told_of", service::a_vip_on_an_interface),
            Test::once("a_graceful_stop_hands_over_within_a_moment", service::a_graceful_stop_is_quick),
            Test::once("cold_nodes_take_over_without_a_late_answer", service::cold_nodes_take_over),
            Test::once("the_watchdog_leaves_an_obituary", service::the_watchdog_leaves_an_obituary),
            Test::once("with_little_space_writes_are_refused_and_leases_go_on", service::little_space),
            Test::once("a_change_that_would_leave_no_majority_is_refused", service::a_majority_stays),
            Test::once("no_message_stops_a_node", service::no_message_stops_a_node),
            Test::once("each_method_is_for_its_roles_by_every_way", security::each_method),
            Test::once("strangers_and_impostors_change_nothing", security::strangers),
            Test::once("certificates_are_replaced_under_load", security::certificates_are_replaced),
            Test::once("metrics_are_read_as_scrapers_do", metrics::are_read),
            Test::once("prometheus_evaluates_the_dashboard", metrics::dashboard_is_evaluated)
                .needs(metrics::prometheus_is_there),
            Test::once("the_doctor_finds_what_is_wrong_with_vips_and_backends", doctor::of_backends_and_vips),
            Test::once("the_doctor_finds_what_is_wrong_with_nodes", doctor::of_nodes),
            Test::once("the_page_shows_what_happens", page::shows).needs(lb_tests::browser::is_there),
            Test::once("alerts_come_when_they_should", metrics::alerts_come).needs(metrics::promtool_is_there),
            Test::once("a_node_leaves_nothing_open", security::least_privilege),
            Test::once("started_by_root_it_becomes_another_user", security::another_user),
            Test::once("a_revoked_certificate_ends_at_once", security::revocation),
            Test::once("a_machine_joins_by_a_token_that_works_once", enroll::by_token),
            Test::once("a_node_that_cannot_call_back_is_not_added", service::a_node_that_cannot_call_back),
            Test::once("two_settings_at_once_both_hold", service::two_settings_at_once),
            Test::once("a_vip_that_comes_and_goes_is_answered_each_time", segments::a_vip_comes_and_goes),
            Test::once("settings_are_shown_set_and_refused", faults::settings),
            Test::once("a_vip_moves_on_request_and_on_a_graceful_stop", moves::moves_and_stops),
            Test::once("the_api_serves_health_and_reflection", api::surface),
            Test::once("writes_are_guarded_tried_and_made_once", api::writes),
            Test::once("lists_come_in_pages_and_as_new_as_asked_for", api::reads),
            Test::once("a_table_is_what_its_file_says", declared::by_a_file),
            Test::once("whatever_a_server_answers_is_told_clearly", garbage::is_told_clearly),
            Test::once("top_draws_on_a_terminal", looking::on_a_terminal),
            Test::once("single_objects_and_changes_are_looked_at_and_waited_for", looking::at_one_object),
            Test::once("a_thousand_processes_add_a_backend_each", declared::a_thousand_processes),
            Test::once("every_command_has_its_transcript", transcripts::every_command),
            Test::once("shells_complete_the_names_that_there_are", completions::live_names)
                .needs(completions::shells_are_there),
            Test::once("each_write_is_made_once_while_leaders_are_killed", once::each_write),
            Test::once("wrong_input_in_every_field_is_refused_by_its_name", wrong_input::in_every_field),
            Test::once("more_callers_than_can_be_served_disturb_nobody", overload::callers),
            Test::once("the_python_client_works", api::python_client).needs(lb_tests::python::is_there),
            Test::once("who_does_not_read_is_told_from_where_to_go_on", api::slow_watcher),
            Test::once("whoever_watches_is_told_each_change_in_order", api::watched),
            Test::once("what_has_happened_is_told_with_its_reason", events::of_a_takeover),
            Test::once("events_of_every_kind_are_told_alike", events::of_every_kind),
            Test::once("a_request_is_followed_by_its_id", events::of_a_request),
        ],
    )
}

//! Changes of settings in which `None` leaves a value as it is.

/// Says which settings a patch is about: by what they are found, and what can be changed.
macro_rules! patches {
    ($patch:ident of $settings:ident by { $($key:ident: $type:ty),+ } { $($field:ident),+ $(,)? }) => {
        impl $patch {
            /// One that changes nothing yet.
            pub fn of($($key: $type),+) -> Self {
                Self { $($key,)+ $($field: None),+ }
            }

            /// One that makes of the present settings these ones, as far as they can be changed. What is so already is not
            /// in it: not every feature level has a place for it.
            pub(in crate::table) fn between(present: &$settings, wanted: $settings) -> Self {
                Self {
                    $($key: wanted.$key,)+
                    $($field: (present.$field != wanted.$field).then_some(wanted.$field)),+
                }
            }

            /// The settings after it.
            pub(in crate::table) fn applied_to(&self, settings: &$settings) -> $settings {
                let mut settings = settings.clone();
                $(if let Some(value) = &self.$field {
                    settings.$field.clone_from(value);
                })+
                settings
            }
        }
    };
}

pub(super) use patches;

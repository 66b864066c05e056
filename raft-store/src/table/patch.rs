//! Changes of settings in which `None` leaves a value as it is.

/// Says which settings a patch is about: by what they are found, and what can be changed.
macro_rules! patches {
    ($patch:ident of $settings:ident by { $($key:ident: $type:ty),+ } { $($field:ident),+ $(,)? }) => {
        impl $patch {
            /// One that changes nothing yet.
            pub fn of($($key: $type),+) -> Self {
                Self { $($key,)+ $($field: None),+ }
            }

            /// One that makes all that can be changed what it is here.
            pub fn to(settings: $settings) -> Self {
                Self { $($key: settings.$key,)+ $($field: Some(settings.$field)),+ }
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

package reason

// Failures to change a service's key at its KDC.
const (
	AdminServerUnreachable ID = "admin-server-unreachable"
	AdminServerReply       ID = "admin-server-reply"
	KeyChangeRefused       ID = "key-change-refused"
	KeyChangeTooSoon       ID = "key-change-too-soon"
	KeyChangeUnknown       ID = "key-change-unknown"
	KeyChangedElsewhere    ID = "key-changed-elsewhere"

	RotationImpossible     ID = "rotation-impossible"
	RotationUnacknowledged ID = "rotation-unacknowledged"
	RotationUnverified     ID = "rotation-unverified"
)

// Rotation documents what stands against a change of keys, in the order above.
var Rotation = []Doc{
	{AdminServerUnreachable,
		"No server of the realm that changes keys (kadmind, or that of kpasswd) could be reached, so nothing was changed.",
		"Check admin_server or kpasswd_server of the realm in [realms] and the network to the addresses named in the message: TCP port 749 for kadmin, 464 of TCP or UDP for kpasswd."},
	{AdminServerReply,
		"What listens in the place of the realm's kadmind or kpasswd server does not prove that it is that, or does not speak its protocol.",
		"Look at what listens at the address named in the message: a wrong server, a broken proxy, or somebody forging answers. Nothing was changed."},
	{KeyChangeRefused,
		"The KDC refused to change, purge or show the keys of the service.",
		"The message has the KDC's word: lockdown_keys on the principal, a password policy, such as a minimum age that is not over, or an account that may not change its own password. The keys are what they were."},
	{KeyChangeTooSoon,
		"The KDC does not change the keys yet: the minimum life of the password policy is not over.",
		"Wait, or give the principal a policy without a minimum life (kadmin: modpol -minlife 0, or modprinc -clearpolicy); in Active Directory, minimum password age."},
	{KeyChangeUnknown,
		"The request to change the keys went out, and no answer that proves itself came back: it may have been executed.",
		"Do not send it again as it is: each time makes another version of the key. Keep the pending keys, and look which key a ticket for the service is made with; the next attempt does so."},
	{KeyChangedElsewhere,
		"The KDC has a key of the service that is none of those known here.",
		"Somebody has changed it beside the store: a ktadd without -norandkey, a second tool, an account that was reset. Import the new keytab (keystored import --write), also while a rotation goes on. Before that the KDC is asked only by keystored rotate, as refused logins count toward a lockout."},
	{RotationImpossible,
		"The keys of an entry of a key store cannot be rotated as it is: it was deleted, is disabled, has no current key, or too many previous ones; or the KDC makes tickets with a type of key that new keys would not have.",
		"The message says which. Enable the entry, import its keytab, or have the KDC make tickets of another type (in Active Directory, msDS-SupportedEncryptionTypes = 24 of the account); then rotate it again. Nothing was changed."},
	{RotationUnacknowledged,
		"Live hosts have not said within ten minutes that they accept with the pending keys, so the KDC was not given them.",
		"Look at the hosts named in the message: gssproxyd's status says why the entry is not in force there. When they acknowledge, the rotation goes on by itself. Forced on (keystored rotate --force), they may refuse tickets until they have the keys."},
	{RotationUnverified,
		"The KDC said that it has changed the key, and tickets are still made with the old one after all KDCs should have the new one.",
		"Look at the propagation to the realm's replicas, and whether the lag configured for it is true. Both keys are accepted meanwhile, and tickets are looked at again."},
}

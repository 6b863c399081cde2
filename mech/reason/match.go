package reason

// Refusals of a connection that no service is for. Of several services, the one that came nearest
// to matching gives the reason: see conf.Config.Decide.
const (
	NoServiceForUID  ID = "no-service-for-uid"
	SELinuxMismatch  ID = "selinux-mismatch"
	ProgramMismatch  ID = "program-mismatch"
	ProgramUnknown   ID = "program-unknown"
	ProgramElsewhere ID = "program-in-other-namespace"
	WrongSocket      ID = "wrong-socket"
)

// Match documents why no service matches.
var Match = []Doc{
	{NoServiceForUID, "no service on this socket is for the peer's uid",
		"set euid of the service to the user the program runs as, or allow_any_uid"},
	{SELinuxMismatch, "the peer's SELinux context is not that of the service",
		"compare selinux_context with ps -Z; the option is deprecated, euid and socket do as well"},
	{ProgramMismatch, "the peer runs another program than the service is for",
		"set program to what readlink /proc/PID/exe says; scripts run as their interpreter"},
	{ProgramUnknown, "the service is for one program, and the peer's is not known",
		"the peer may have ended, or be a kernel thread; remove program if that is what should match"},
	{ProgramElsewhere, "the peer has a file system of its own, and its program is not the file with that path here",
		"give programs in containers a service with a socket that only they can reach, instead of program"},
	{WrongSocket, "the service the peer belongs to is reached through another socket",
		"set GSSPROXY_SOCKET of the peer to the service's socket, or remove socket from the service"},
}

package webapi

import (
	"net/http"

	"sft/internal/platform"
)

// routes is the whole API.
func routes(p *platform.Platform) []route {
	const (
		ok      = http.StatusOK
		created = http.StatusCreated
		none    = http.StatusNoContent
		team    = "/v1/teams/{team}"
		project = team + "/projects/{project}"
	)
	return []route{
		{"GET", "/v1/info", anyone, call(ok, p.Info)},

		// Agents.
		{"POST", "/v1/servers/enroll", anyone, call(created, p.EnrollServer)}, // the token or the cloud's signature in the body is the proof
		{"GET", "/v1/agent/state", agent, call(ok, p.State)},
		{"POST", "/v1/agent/report", agent, call(ok, p.Report)},
		{"POST", "/v1/agent/events", agent, call(none, p.Events)},
		{"POST", "/v1/agent/service_client", agent, call(created, p.ServiceClient)},
		{"POST", "/v1/agent/device_key", anyone, call(none, p.RotateDeviceKey)}, // both keys have signed in the body

		// Clients.
		{"POST", "/v1/clients/enroll", anyone, call(created, p.EnrollClient)}, // the code in the body is the proof
		{"POST", "/v1/clients/device_code", anyone, call(ok, p.DeviceCode)},   // opens nothing until a person approves
		{"POST", "/v1/clients/login", device, call(ok, p.LoginClient)},
		{"POST", "/v1/clients/logout", device, call(none, p.LogoutClient)},
		{"POST", team + "/connect", device, call(ok, p.Connect)}, // looks at the sign-in itself, and records a refusal
		{"GET", team + "/resolve", signedIn, call(ok, p.Resolve)},
		{"POST", team + "/client_events", signedIn, call(none, p.ClientEvents)},

		// Everybody, and administration.
		{"POST", team + "/service_token", anyone, call(ok, p.ServiceToken)}, // the key in the body is the proof
		{"GET", team + "/auditsV2", person, call(ok, p.ListEvents)},
		{"GET", team + "/settings", person, call(ok, p.GetSettings)},
		{"PUT", team + "/settings", person, call(none, p.UpdateSettings)},
		{"GET", team + "/team_stats", person, call(ok, p.Stats)},
		{"GET", team + "/current_user", person, call(ok, p.WhoAmI)},
		{"GET", team + "/clients", person, call(ok, p.ListClients)},
		{"GET", team + "/clients/{id}", person, call(ok, p.GetClient)},
		{"PUT", team + "/clients/{id}", person, call(none, p.UpdateClient)},
		{"DELETE", team + "/clients/{id}", deviceOrKey, call(none, p.DeleteClient)},
		{"POST", team + "/rdp_signing_certificate", person, call(created, p.CreateRDPSigner)},
		{"GET", team + "/rdp_signing_certificate", person, call(ok, p.RDPSigner)},
		{"POST", team + "/rdp_signature", signedIn, call(ok, p.SignRDPFile)},
		{"GET", team + "/servers", person, call(ok, p.ListServers)},
		{"PUT", team + "/servers/{id}", person, call(none, p.UpdateServer)},
		{"GET", team + "/users", person, call(ok, p.ListUsers)},
		{"POST", team + "/users", person, call(created, p.CreateUser)},
		{"GET", team + "/users/{user}", person, call(ok, p.GetUser)},
		{"PUT", team + "/users/{user}", person, call(none, p.UpdateUser)},
		{"GET", team + "/users/{user}/groups", person, call(ok, p.ListUserGroups)},
		{"GET", team + "/users/{user}/attributes", person, call(ok, p.ListAttributes)},
		{"GET", team + "/users/{user}/attributes/{attribute}", person, call(ok, p.GetAttribute)},
		{"PUT", team + "/users/{user}/attributes/{attribute}", person, call(none, p.SetUserAttribute)},
		{"POST", team + "/users/{user}/first_use", person, call(created, p.ResetUser)},
		{"GET", team + "/service_users", person, call(ok, p.ListServiceUsers)},
		{"POST", team + "/service_users", person, call(created, p.CreateServiceUser)},
		{"GET", team + "/service_users/{user}", person, call(ok, p.GetServiceUser)},
		{"PUT", team + "/service_users/{user}", person, call(ok, p.UpdateServiceUser)},
		{"GET", team + "/service_users/{user}/keys", person, call(ok, p.ListKeys)},
		{"POST", team + "/service_users/{user}/keys", person, call(created, p.RotateKey)},
		{"GET", team + "/service_users/{user}/keys/{key}", person, call(ok, p.GetKey)},
		{"DELETE", team + "/service_users/{user}/keys/{key}", person, call(none, p.DeleteKey)},
		{"GET", team + "/service_users/{user}/bindings", person, call(ok, p.ListBindings)},
		{"POST", team + "/service_users/{user}/bindings", person, call(created, p.CreateBinding)},
		{"DELETE", team + "/service_users/{user}/bindings/{id}", person, call(none, p.DeleteBinding)},
		{"GET", team + "/entitlements/sudo", person, call(ok, p.ListSudo)},
		{"POST", team + "/entitlements/sudo", person, call(created, p.CreateSudo)},
		{"GET", team + "/entitlements/sudo/{id}", person, call(ok, p.GetSudo)},
		{"PUT", team + "/entitlements/sudo/{id}", person, call(none, p.UpdateSudo)},
		{"DELETE", team + "/entitlements/sudo/{id}", person, call(none, p.DeleteSudo)},
		{"GET", team + "/groups", person, call(ok, p.ListGroups)},
		{"POST", team + "/groups", person, call(created, p.CreateGroup)},
		{"GET", team + "/groups/{group}", person, call(ok, p.GetGroup)},
		{"PUT", team + "/groups/{group}", person, call(none, p.UpdateGroup)},
		{"DELETE", team + "/groups/{group}", person, call(none, p.DeleteGroup)},
		{"GET", team + "/groups/{group}/users", person, call(ok, p.ListMembers)},
		{"POST", team + "/groups/{group}/users", person, call(none, p.AddMember)},
		{"DELETE", team + "/groups/{group}/users/{user}", person, call(none, p.RemoveMember)},
		{"GET", team + "/groups/{group}/attributes", person, call(ok, p.ListAttributes)},
		{"GET", team + "/groups/{group}/attributes/{attribute}", person, call(ok, p.GetAttribute)},
		{"PUT", team + "/groups/{group}/attributes/{attribute}", person, call(none, p.SetGroupAttribute)},
		{"GET", team + "/groups/{group}/users_not_in_group", person, call(ok, p.ListNotMembers)},
		{"GET", team + "/projects", person, call(ok, p.ListProjects)},
		{"POST", team + "/projects", person, call(created, p.CreateProject)},
		{"GET", project, person, call(ok, p.GetProject)},
		{"PUT", project, person, call(none, p.UpdateProject)},
		{"DELETE", project, person, call(none, p.DeleteProject)},
		{"GET", project + "/groups", person, call(ok, p.ListProjectGroups)},
		{"POST", project + "/groups", person, call(created, p.AddProjectGroup)},
		{"GET", project + "/groups/{group}", person, call(ok, p.GetProjectGroup)},
		{"PUT", project + "/groups/{group}", person, call(none, p.UpdateProjectGroup)},
		{"DELETE", project + "/groups/{group}", person, call(none, p.RemoveProjectGroup)},
		{"GET", project + "/client_config_options", person, call(ok, p.ListClientOptions)},
		{"POST", project + "/client_config_options", person, call(created, p.SetClientOption)},
		{"GET", project + "/client_config_options/{id}", person, call(ok, p.GetClientOption)},
		{"DELETE", project + "/client_config_options/{id}", person, call(none, p.DeleteClientOption)},
		{"GET", project + "/server_enrollment_tokens", person, call(ok, p.ListTokens)},
		{"POST", project + "/server_enrollment_tokens", person, call(created, p.CreateToken)},
		{"GET", project + "/server_enrollment_tokens/{id}", person, call(ok, p.GetToken)},
		{"DELETE", project + "/server_enrollment_tokens/{id}", person, call(none, p.DeleteToken)},
		{"GET", project + "/cloud_accounts", person, call(ok, p.ListCloudAccounts)},
		{"POST", project + "/cloud_accounts", person, call(created, p.CreateCloudAccount)},
		{"GET", project + "/cloud_accounts/{id}", person, call(ok, p.GetCloudAccount)},
		{"DELETE", project + "/cloud_accounts/{id}", person, call(none, p.DeleteCloudAccount)},
		{"GET", project + "/authorities", person, list(p.ListAuthorities)},
		{"POST", project + "/authorities", person, call(created, p.RotateAuthorities)},
		{"GET", project + "/server_users", person, call(ok, p.ListServerUsers)},
		{"GET", project + "/server_users/{user}", person, call(ok, p.GetServerUser)},
		{"GET", project + "/servers", person, call(ok, p.ListServers)},
		{"POST", project + "/servers", person, call(created, p.CreateUnmanaged)}, // the same as of unmanaged_servers
		{"GET", project + "/servers/{id}", person, call(ok, p.GetServer)},
		{"PUT", project + "/servers/{id}", person, call(none, p.UpdateServer)},
		{"DELETE", project + "/servers/{id}", person, call(none, p.DeleteServer)},
		{"GET", project + "/servers/{id}/access", person, call(ok, p.Access)},
		{"GET", project + "/preauthorizations", person, call(ok, p.ListPreauths)},
		{"POST", project + "/preauthorizations", person, call(created, p.CreatePreauth)},
		{"GET", project + "/preauthorizations/{id}", person, call(ok, p.GetPreauth)},
		{"PUT", project + "/preauthorizations/{id}", person, call(none, p.UpdatePreauth)},
		{"GET", project + "/unmanaged_servers", person, call(ok, p.ListUnmanaged)},
		{"POST", project + "/unmanaged_servers", person, call(created, p.CreateUnmanaged)},
		{"DELETE", project + "/unmanaged_servers/{id}", person, call(none, p.DeleteUnmanaged)},
	}
}

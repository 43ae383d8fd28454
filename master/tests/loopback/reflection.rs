use crate::harness::{Master, soon};

/// Both versions of reflection have the same messages under different names.
macro_rules! reflection {
    ($name:ident, $version:ident) => {
        #[tokio::test]
        async fn $name() {
            use tonic_reflection::pb::$version::ServerReflectionRequest;
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;

            let master = Master::start().await;
            let ask = async |question: MessageRequest| {
                let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
                let stream = futures_util::stream::iter([request]);
                let mut client = ServerReflectionClient::new(master.channel().await);
                let mut answers = soon(client.server_reflection_info(stream)).await.unwrap().into_inner();
                soon(answers.message()).await.unwrap().unwrap().message_response.unwrap()
            };
            let MessageResponse::ListServicesResponse(list) = ask(MessageRequest::ListServices(String::new())).await
            else {
                panic!("no list")
            };
            let mut services: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
            let expected = [
                "arborcast.registry.v1.Registry",
                "grpc.health.v1.Health",
                "grpc.reflection.v1.ServerReflection",
                "grpc.reflection.v1alpha.ServerReflection",
            ];
            services.sort_unstable();
            assert_eq!(services, expected);
            for symbol in
                ["arborcast.registry.v1.Registry", "arborcast.registry.v1.NodeReport", "grpc.health.v1.Health"]
            {
                let answer = ask(MessageRequest::FileContainingSymbol(symbol.into())).await;
                let MessageResponse::FileDescriptorResponse(files) = answer else { panic!("{symbol}: {answer:?}") };
                assert!(!files.file_descriptor_proto.is_empty());
            }
            for import in ["google/protobuf/timestamp.proto", "google/protobuf/duration.proto"] {
                let answer = ask(MessageRequest::FileByFilename(import.into())).await;
                assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)), "{import}: {answer:?}");
            }
        }
    };
}

reflection!(version_1_describes_everything, v1);
reflection!(version_1_alpha_describes_everything, v1alpha);

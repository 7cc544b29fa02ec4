-- in UTF-8 whatever the server's default: in another encoding Prefect cannot keep every work pool
CREATE DATABASE mlflow ENCODING 'UTF8' TEMPLATE template0;
CREATE DATABASE mlflow_auth ENCODING 'UTF8' TEMPLATE template0;
CREATE DATABASE prefect ENCODING 'UTF8' TEMPLATE template0;
